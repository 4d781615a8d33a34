"""`moectl top` looks the same: pictures of every page, at 80x24 and large."""

from collections.abc import Callable

import pytest
from textual.pilot import Pilot

from moectl.cli.tui.app import PAGES, FleetApp
from moectl.cli.tui.feed import FixedFeed
from moectl.cli.tui.sample import sample_fleet, sample_pages

SMALL, LARGE = (80, 24), (140, 42)
Compare = Callable[..., bool]


def app(width: int = 4, phase: str = "done", **shape: int) -> FleetApp:
    fleets = [sample_fleet(width, phase=phase, tick=tick, **shape) for tick in range(12)]
    return FleetApp(FixedFeed(fleets, sample_pages))


async def settle(pilot: Pilot[None]) -> None:
    """Until the last snapshot is shown."""
    for _ in range(50):
        await pilot.pause(0.02)
        shown = pilot.app._fleet  # type: ignore[attr-defined]
        if shown is not None and shown.revision == 118 + 11:
            break
    await pilot.pause()


def keys(*pressed: str) -> Callable[[Pilot[None]], object]:
    async def run(pilot: Pilot[None]) -> None:
        await settle(pilot)
        await pilot.press(*pressed)
        await settle(pilot)

    return run


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("page", PAGES)
def test_every_page(snap_compare: Compare, page: str, size: tuple[int, int]) -> None:
    assert snap_compare(app(), terminal_size=size, run_before=keys(str(PAGES.index(page) + 1)))


@pytest.mark.parametrize("phase", ["prepare", "retire", "forfeited"])
def test_a_change_under_way(snap_compare: Compare, phase: str) -> None:
    assert snap_compare(app(3, phase), terminal_size=SMALL, run_before=settle)


def test_experts_by_rank(snap_compare: Compare) -> None:
    assert snap_compare(app(), terminal_size=SMALL, run_before=keys("2", "c"))


def test_a_model_with_more_experts_than_columns(snap_compare: Compare) -> None:
    wide = app(layers=24, experts=128)
    assert snap_compare(wide, terminal_size=SMALL, run_before=keys("2"))


def test_the_keys(snap_compare: Compare) -> None:
    assert snap_compare(app(), terminal_size=SMALL, run_before=keys("question_mark"))


def test_an_empty_fleet_before_the_first_snapshot(snap_compare: Compare) -> None:
    assert snap_compare(FleetApp(FixedFeed([])), terminal_size=SMALL)


async def test_a_lost_controller_is_shown_as_stale() -> None:
    class Broken(FixedFeed):
        def run(self, seen, lost) -> None:  # type: ignore[no-untyped-def]
            super().run(seen, lost)
            lost("the controller does not answer")

    screen = FleetApp(Broken([sample_fleet()]))
    async with screen.run_test(size=SMALL) as pilot:
        await pilot.pause(0.1)
        assert "STALE" in str(screen.query_one("#headline").render())  # type: ignore[attr-defined]


async def test_everything_works_from_the_keyboard() -> None:
    screen = app()
    async with screen.run_test(size=SMALL) as pilot:
        await settle(pilot)
        for key, page in enumerate(PAGES, start=1):
            await pilot.press(str(key))
            assert screen.query_one("#pages").current == page  # type: ignore[attr-defined]
        await pilot.press("space")
        assert "PAUSED" in str(screen.query_one("#headline").render())  # type: ignore[attr-defined]
        await pilot.press("question_mark", "escape", "q")
    assert screen.return_code == 0
