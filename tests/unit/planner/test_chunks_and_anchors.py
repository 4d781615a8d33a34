"""Long prompts: equal-time chunks, small bubbles, published figures within 15 %."""

import pytest

from moectl.cli import catalogue
from moectl.placement.anchors import anchors
from moectl.placement.chunks import (
    ChunkCost,
    bubble,
    equal_time_chunks,
    fit_chunk_cost,
    pipeline_seconds,
)

COST = ChunkCost(linear=2e-6, quadratic=1e-10)


@pytest.mark.parametrize("tokens", [131_072, 1_000_000])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_equal_time_chunks_leave_only_filling_and_draining_idle(tokens: int, stages: int) -> None:
    chunks = equal_time_chunks(COST, tokens, 96)
    assert sum(chunks) == tokens
    ideal = (stages - 1) / (len(chunks) + stages - 1)
    assert bubble(COST, chunks, stages) <= ideal + 0.03


def test_four_stages_idle_at_most_five_percent_and_beat_fixed_chunks() -> None:
    tokens = 1_000_000
    dynamic = equal_time_chunks(COST, tokens, 80)
    fixed = (tokens // 80,) * 80
    assert bubble(COST, dynamic, 4) <= 0.05
    assert pipeline_seconds(COST, dynamic, 4) < pipeline_seconds(COST, fixed, 4)


def test_chunks_shrink_as_the_prefix_grows() -> None:
    chunks = equal_time_chunks(COST, 500_000, 20, block=1)
    assert list(chunks) == sorted(chunks, reverse=True)


def test_the_quadratic_is_found_again_from_measurements() -> None:
    truth = ChunkCost(3e-6, 2e-10, 1e-3)
    points = [(p, c, truth.seconds(p, c)) for p in (0, 10_000, 90_000) for c in (512, 4096, 16384)]
    found = fit_chunk_cost(points)
    assert found.linear == pytest.approx(truth.linear, rel=1e-6)
    assert found.quadratic == pytest.approx(truth.quadratic, rel=1e-6)


def test_published_long_context_figures_are_met_within_15_percent() -> None:
    shapes = {name: shape for name, (_, shape) in catalogue.all_shapes().items()}
    found = anchors(shapes, catalogue.devices(), catalogue.constants())
    assert {a.name: round(a.error, 3) for a in found if abs(a.error) > 0.15} == {}
    assert len(found) >= 6
