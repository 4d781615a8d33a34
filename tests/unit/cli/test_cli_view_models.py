"""The pure side of the screen: heat map, bars, timeline, rates, rows."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.cli.tui.bars import PARTS, bars, cells_of
from moectl.cli.tui.heat import LEVELS, heat_map, level_of
from moectl.cli.tui.rates import POINTS_MAX, Rates, advance
from moectl.cli.tui.rows import event_rows, headline, worker_rows
from moectl.cli.tui.sample import sample_fleet
from moectl.cli.tui.timeline import newest_transition, timeline


def test_heat_map_has_a_cell_an_expert_when_there_is_room() -> None:
    found = heat_map(sample_fleet(4).models[0], 40)
    assert found is not None
    assert (len(found.rows), len(found.rows[0].cells), found.experts_per_cell) == (4, 16, 1)
    assert {cell.rank for cell in found.rows[0].cells} == {0, 1, 2, 3}
    assert all(row.imbalance >= 1.0 for row in found.rows)


def test_a_narrow_screen_folds_experts_and_loses_no_tokens() -> None:
    model = sample_fleet(4, experts=128).models[0]
    wide, narrow = heat_map(model, 128), heat_map(model, 30)
    assert wide is not None and narrow is not None
    assert narrow.experts_per_cell == 5
    assert len(narrow.rows[0].cells) <= 30
    for before, after in zip(wide.rows, narrow.rows, strict=True):
        assert sum(c.tokens for c in before.cells) == sum(c.tokens for c in after.cells)
        assert before.imbalance == after.imbalance


def test_no_placement_is_shown_as_unknown() -> None:
    assert heat_map(None, 40) is None


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_levels_are_in_range_and_only_idle_is_zero(tokens: int, most: int) -> None:
    level = level_of(min(tokens, most), most)
    assert 0 <= level < LEVELS
    assert (level == 0) == (min(tokens, most) == 0)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(0, 200))
def test_cells_always_fill_the_bar_exactly(amounts: list[int], width: int) -> None:
    cells = cells_of(amounts, width)
    assert sum(cells) == (width if sum(amounts) else 0)
    assert all(cell >= 0 for cell in cells)
    if width >= len(amounts):
        assert all(cell == 0 for cell, amount in zip(cells, amounts, strict=True) if amount == 0)
        assert all(cell > 0 for cell, amount in zip(cells, amounts, strict=True) if amount > 0)


def test_bars_add_up_to_the_device() -> None:
    for bar in bars(sample_fleet(4, phase="prepare")):
        assert sum(bar.pages) + bar.free == bar.total
        assert len(bar.pages) == len(PARTS)


def test_a_device_that_has_not_reported_is_unknown() -> None:
    fleet = sample_fleet()
    node = fleet.nodes[0]
    device = dataclasses.replace(node.devices[0], usage=None)
    fleet = dataclasses.replace(fleet, nodes=(dataclasses.replace(node, devices=(device,)),))
    assert not bars(fleet)[0].is_known


@pytest.mark.parametrize(
    "phase,states",
    [
        ("prepare", ["running", "waiting", "waiting"]),
        ("retire", ["done", "done", "running"]),
        ("done", ["done", "done", "done"]),
        ("forfeited", ["undone", "waiting", "waiting"]),
    ],
)
def test_phases_have_states_and_seconds(phase: str, states: list[str]) -> None:
    fleet = sample_fleet(4, phase=phase)
    newest = newest_transition(fleet, "chat")
    assert newest is not None
    shown = timeline(newest, fleet.at)
    assert [line.state for line in shown.phases] == states
    assert all((line.seconds is None) == (line.state == "waiting") for line in shown.phases)


def test_rates_come_from_counters_and_survive_a_restarted_worker() -> None:
    rates = advance(Rates(), sample_fleet(tick=0), "chat")
    rates = advance(rates, sample_fleet(tick=1), "chat")
    assert rates.history == (144.0,)
    again = dataclasses.replace(sample_fleet(tick=0), at=sample_fleet(tick=2).at)
    assert advance(rates, again, "chat").tokens_per_s == 10_000.0  # counted from zero, not negative


def test_snapshots_too_close_together_wait_for_the_next() -> None:
    first = sample_fleet(tick=0)
    rates = advance(Rates(), first, "chat")
    soon = dataclasses.replace(sample_fleet(tick=1), at=first.at + 0.2)
    assert advance(rates, soon, "chat").history == ()
    assert advance(advance(rates, soon, "chat"), sample_fleet(tick=1), "chat").history == (144.0,)


def test_history_is_limited() -> None:
    rates = Rates()
    for tick in range(POINTS_MAX + 30):
        rates = advance(rates, sample_fleet(tick=tick), "chat")
    assert len(rates.history) == POINTS_MAX


def test_rows_show_workers_and_newest_events_first() -> None:
    fleet = sample_fleet(4, phase="forfeited")
    assert [row[1].text for row in worker_rows(fleet.models[0])] == ["n1/d0", "n1/d1"]
    rows = event_rows(fleet, 2)
    assert [row[1].text for row in rows] == ["ScaleForfeited", "ScalePrepare"]
    assert headline(dataclasses.replace(fleet, missing_nodes=("n3",))).endswith("MISSING n3")
