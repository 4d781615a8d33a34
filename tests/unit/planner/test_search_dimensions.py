"""Context ranks, chunks, lone prompts and gaps in the search; families that are refused."""

from dataclasses import replace
from typing import Any

import pytest

from moectl.cli import catalogue
from moectl.placement.candidates import (
    CHUNKS,
    Candidate,
    Question,
    Workload,
    enumerate_layouts,
    family,
    refused_families,
    weigh_all,
)
from moectl.placement.layouts import Layout, why_illegal
from moectl.placement.long_prompt import cut
from moectl.placement.memory_terms import USABLE, Demand, memory_terms
from moectl.placement.quantities import PRECISIONS
from moectl.placement.search import Fleet, Pool, best_fleet

CONSTANTS, H200 = catalogue.constants(), catalogue.find_device("h200")
LONG = Workload(400_000, 512)


def question(model: str, work: Workload, precision: str = "bf16", engine: str = "any") -> Question:
    return Question(catalogue.find_shape(model)[1], PRECISIONS[precision], engine, work)


def found(asked: Question, layout: Layout) -> list[Candidate]:
    return weigh_all(asked, H200, [layout], CONSTANTS)[0]


def fleet_of(asked: Question, nodes: int) -> Fleet:
    return best_fleet(asked, (Pool(H200, nodes, 8),), CONSTANTS)


def test_chunks_are_tried_up_to_the_first_that_takes_the_prompt() -> None:
    assert Workload(512, 64).chunks == (2048, 8192)
    assert Workload(20_000, 64).chunks == (2048, 8192, 32_768)
    assert Workload(1_000_000, 64).chunks == CHUNKS
    assert Workload(1_000_000, 64, chunk=4096).chunks == (4096,)


def test_a_context_rank_has_a_share_worth_having() -> None:
    assert Workload(4096, 64).context_ranks == 1
    assert Workload(70_000, 64).context_ranks == 8
    _, shape = catalogue.find_shape("qwen3-30b-a3b")
    layouts = enumerate_layouts(shape, 8, 16, context_ranks=8)
    assert {layout.cp for layout in layouts} == {1, 2, 4, 8}
    assert len(layouts) == len(set(layouts))
    assert all(not why_illegal(shape, layout) for layout in layouts)


def test_context_ranks_let_a_prompt_fit_that_one_device_cannot_hold() -> None:
    asked = question("qwen2.5-14b-1m", Workload(1_000_000, 512))
    assert not found(asked, Layout())
    assert found(asked, Layout(cp=4))


def test_a_smaller_chunk_leaves_room_for_more_requests() -> None:
    asked = question("qwen3-235b-a22b", Workload(131_072, 512))
    layout = Layout(tp=8)
    by_chunk = {
        chunk: max(c.batch for c in found(asked, layout) if c.chunk == chunk and c.role == "serve")
        for chunk in CHUNKS
    }
    assert by_chunk[2048] >= by_chunk[131_072] and by_chunk[2048] >= 1
    held = {
        chunk: min(c.memory_bytes for c in found(asked, layout) if c.chunk == chunk)
        for chunk in CHUNKS
    }
    assert sorted(held.values()) == list(held.values())


def test_a_limit_on_the_gap_is_kept_by_narrow_chunks_alone() -> None:
    free = question("qwen3-32b", replace(LONG, input_tokens=60_000), "fp8")
    gaps = {c.chunk: c.gap_s for c in found(free, Layout(tp=8)) if c.role == "serve"}
    limit = (gaps[2048] + gaps[65_536 * 2]) / 2
    tight = replace(free, workload=replace(free.workload, gap_s=limit))
    kept = [c for c in found(tight, Layout(tp=8)) if c.role == "serve"]
    assert kept and all(c.gap_s <= limit for c in kept)
    assert max(c.chunk for c in kept) < 131_072


def test_an_impossible_gap_is_named_with_its_excess() -> None:
    asked = question("qwen3-32b", Workload(8192, 512, gap_s=1e-4), "fp8")
    candidates, rejected = weigh_all(asked, H200, [Layout(tp=8)], CONSTANTS)
    assert not [c for c in candidates if c.role == "serve"]
    assert [r.limit for r in rejected] == ["gap"] and rejected[0].excess > 1


def test_stages_that_cannot_hold_a_batch_each_still_serve_one_prompt() -> None:
    asked = question("qwen2.5-14b-1m", Workload(1_000_000, 512))
    layout = Layout(pp=16)
    lone = [c for c in found(asked, layout) if c.role == "serve"]
    assert {c.under_way for c in lone} == {1}
    for each in lone:
        demand = Demand(each.under_way / layout.pp, 1_000_512, each.chunk)
        terms = memory_terms(asked.shape, layout, asked.precision, demand)
        assert each.memory_bytes == pytest.approx(terms.total)
        assert terms.total <= H200.hbm_bytes * USABLE


@pytest.mark.parametrize("layout", [Layout(tp=8, pp=4), Layout(tp=4, pp=2), Layout(tp=2, pp=8)])
def test_a_pipeline_cuts_into_chunks_of_equal_time_none_wider_than_planned(layout: Layout) -> None:
    asked = question("qwen2.5-7b-1m", LONG)
    for each in [c for c in found(asked, layout) if c.role == "serve" and c.batch == 1]:
        parts = cut(asked, H200, each, CONSTANTS)
        assert sum(parts.chunks) == LONG.input_tokens
        assert max(parts.chunks) <= min(each.chunk, LONG.input_tokens) + 64
        assert parts.bubble <= parts.fixed_bubble + 1e-3


def test_one_stage_cuts_evenly() -> None:
    asked = question("qwen2.5-7b-1m", LONG)
    each = next(c for c in found(asked, Layout(tp=4)) if c.chunk == 32_768)
    assert set(cut(asked, H200, each, CONSTANTS).chunks[:-1]) == {32_768}


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (Layout(), "one device"),
        (Layout(tp=8), "tp"),
        (Layout(2, 4, 2, 4, 2), "pp x tp x ep x dp x cp"),
    ],
)
def test_families_are_named_by_what_they_combine(layout: Layout, name: str) -> None:
    assert family(layout) == name


def test_refused_families_have_no_candidate_and_name_their_nearest_layout() -> None:
    asked = question("deepseek-v3", Workload(4096, 512, tpot_s=0.02), "fp8")
    fleet = fleet_of(asked, 2)
    candidates, rejected = fleet.candidates[0], fleet.rejected[0]
    refusals = refused_families(rejected, candidates)
    assert refusals and "one device" in {r.family for r in refusals}
    alive = {family(c.layout) for c in candidates}
    for refusal in refusals:
        assert refusal.family not in alive and refusal.layouts >= 1
        mine = [r for r in rejected if family(r.layout) == refusal.family]
        assert refusal.nearest.excess == min(r.excess for r in mine)


def test_our_own_engine_gets_no_context_ranks() -> None:
    asked = question("qwen3-30b-a3b", LONG, engine="moectl")
    for block in fleet_of(asked, 1).blocks:
        assert block.candidate.layout.cp == 1


def test_long_prompts_use_context_ranks_or_stages_to_be_early() -> None:
    asked = question("qwen3-235b-a22b", Workload(1_000_000, 512))
    serving: list[Any] = [c for c in fleet_of(asked, 4).candidates[0] if c.role == "serve"]
    first = min(serving, key=lambda c: c.ttft_s)
    alone = min((c for c in serving if c.layout.cp == c.layout.pp == 1), key=lambda c: c.ttft_s)
    assert first.layout.cp > 1 or first.layout.pp > 1
    assert first.ttft_s < alone.ttft_s
