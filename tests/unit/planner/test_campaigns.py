"""How rows were measured: told by their labels, and what that does to a first token."""

from dataclasses import replace

import pytest

from moectl.cli import catalogue
from moectl.placement.campaigns import RECIPE, SWEEP, WARMED, campaign, mean_lengths, traffic
from moectl.placement.layouts import Layout
from moectl.placement.quantities import PRECISIONS
from moectl.placement.terms import Site
from moectl.placement.weigh import (
    Point,
    Traffic,
    all_seconds,
    columns,
    prefill_seconds,
    step_seconds,
    token_seconds,
)

CONSTANTS = catalogue.constants()
GRID = (1024, 1024)


def point(**changes: object) -> Point:
    _, shape = catalogue.find_shape("qwen3-32b")
    layout = changes.pop("layout", Layout(tp=4))
    assert isinstance(layout, Layout)
    site = Site(shape, catalogue.find_device("h200"), layout, PRECISIONS["fp8"])
    return replace(Point(site, "vllm", 16, 4096, 1024), **changes)  # type: ignore[arg-type]


def first_token(*points: Point) -> list[float]:
    return [float(s) for s in token_seconds(CONSTANTS, columns(points))[1]]


@pytest.mark.parametrize(
    ("lengths", "beside", "habit"),
    [
        (GRID, {GRID, (8192, 1024)}, RECIPE),
        (GRID, {GRID, (1024, 128)}, SWEEP),
        ((4096, 512), {(4096, 512)}, SWEEP),
        ((4000, 1000), {(4000, 1000), GRID}, WARMED),
        (GRID, {GRID, (4000, 1000)}, RECIPE),
    ],
)
def test_lengths_tell_how_a_row_was_measured(
    lengths: tuple[int, int], beside: set[tuple[int, int]], habit: str
) -> None:
    assert campaign(lengths, beside) == habit


def test_the_recipe_draws_lengths_of_nine_tenths_of_the_label() -> None:
    assert mean_lengths(RECIPE, (8192, 1024)) == (7373, 922)
    assert mean_lengths(SWEEP, (8192, 1024)) == (8192, 1024)


def test_only_the_recipe_on_four_bit_devices_looks_at_arrivals_seldom() -> None:
    assert traffic(RECIPE, "sglang", True, 15).poll_steps == 10
    assert traffic(RECIPE, "sglang", True, 16).poll_steps == 30
    for other in (
        traffic(RECIPE, "sglang", False, 64),
        traffic(RECIPE, "vllm", True, 64),
        traffic(SWEEP, "sglang", True, 64),
    ):
        assert other.poll_steps == 1


def test_equal_lengths_seldom_looks_and_the_opening_burst_each_delay_a_first_token() -> None:
    calm = Traffic(opening=0.0)
    times = first_token(
        point(traffic=calm),
        point(traffic=replace(calm, opening=1.0)),
        point(traffic=replace(calm, lockstep=1.0)),
        point(traffic=replace(calm, poll_steps=30.0)),
    )
    assert all(late > times[0] for late in times[1:])


def test_looking_seldom_costs_half_the_steps_between_two_looks() -> None:
    often, seldom = (point(traffic=Traffic(poll_steps=n)) for n in (1.0, 31.0))
    step = float(step_seconds(CONSTANTS, columns([often]))[0])
    center = CONSTANTS.of("first_token_center", "vllm")
    gap = first_token(seldom)[0] - first_token(often)[0]
    assert gap == pytest.approx(15 * step * center, rel=1e-9)


def test_a_prefill_takes_at_least_its_launches_and_at_least_its_device_time() -> None:
    short, long = columns([point(input_tokens=16)]), columns([point(input_tokens=8000)])
    for table in (short, long):
        times = all_seconds(CONSTANTS, table)
        busy, alone = float(times.busy[0]), float(times.alone[0])
        assert busy >= float(prefill_seconds(CONSTANTS, table)[0])
        assert alone > 0
    assert all_seconds(CONSTANTS, short).busy[0] > 2 * prefill_seconds(CONSTANTS, short)[0]
    assert all_seconds(CONSTANTS, long).busy[0] < 1.5 * prefill_seconds(CONSTANTS, long)[0]


def test_smaller_chunks_shorten_the_longest_gap_and_lengthen_the_prefill() -> None:
    tables = [columns([point(input_tokens=32_768, chunk=c)]) for c in (2048, 8192, 32_768)]
    gaps = [float(all_seconds(CONSTANTS, table).gap[0]) for table in tables]
    prefills = [float(prefill_seconds(CONSTANTS, table)[0]) for table in tables]
    assert gaps == sorted(gaps) and prefills == sorted(prefills, reverse=True)


def test_chunks_of_equal_time_fill_a_pipeline() -> None:
    deep = Layout(tp=4, pp=4)
    whole, cut = (
        point(layout=deep, batch=1, input_tokens=131_072, chunk=chunk) for chunk in (131_072, 8192)
    )
    lone = [float(all_seconds(CONSTANTS, columns([p])).alone[0]) for p in (whole, cut)]
    assert lone[1] < 0.5 * lone[0]


def test_context_ranks_shorten_a_long_prefill_and_share_the_cache_that_a_step_reads() -> None:
    alone, four = (
        columns([point(layout=Layout(tp=4, cp=cp), batch=1, input_tokens=262_144)]) for cp in (1, 4)
    )
    assert prefill_seconds(CONSTANTS, four)[0] < prefill_seconds(CONSTANTS, alone)[0] / 2.5
    assert four.decode["cache_read"][0] == pytest.approx(alone.decode["cache_read"][0] / 4)
    assert four.decode["exchanges"][0] > 0 == alone.decode["exchanges"][0]
