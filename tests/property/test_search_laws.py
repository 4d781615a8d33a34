"""Laws of the search: equal to trying everything, within its bound, inside every limit."""

import random
from dataclasses import replace

import pytest

from moectl.cli import catalogue
from moectl.cli.bench.plan_brute import best_rate, random_instance
from moectl.placement.memory_terms import USABLE, Demand, memory_terms
from moectl.placement.search import Fleet, best_fleet

CONSTANTS = catalogue.constants()
DEVICES = list(catalogue.devices().values())


@pytest.mark.parametrize("seed", range(8))
def test_the_answer_equals_trying_everything(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        question, pools = random_instance(rng, DEVICES)
        found = best_fleet(question, pools, CONSTANTS)
        assert found.rate == pytest.approx(best_rate(question, pools, CONSTANTS), rel=1e-9)


def _sum(fleet: Fleet) -> float:
    by_pool: dict[int, dict[str, float]] = {}
    for block in fleet.blocks:
        roles = by_pool.setdefault(block.pool, {"serve": 0.0, "prefill": 0.0, "decode": 0.0})
        roles[block.candidate.role] += block.replicas * block.candidate.rate
    return sum(r["serve"] + min(r["prefill"], r["decode"]) for r in by_pool.values())


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_keeps_every_limit_and_adds_up(seed: int) -> None:
    rng = random.Random(100 + seed)
    for _ in range(10):
        question, pools = random_instance(rng, DEVICES)
        fleet = best_fleet(question, pools, CONSTANTS)
        work = question.workload
        assert fleet.rate <= fleet.bound * (1 + 1e-9)
        assert fleet.devices_used <= sum(pool.devices for pool in pools)
        assert _sum(fleet) == pytest.approx(fleet.rate, rel=1e-9)
        for block in fleet.blocks:
            each, hardware = block.candidate, pools[block.pool].hardware
            assert work.tpot_s is None or each.tpot_s <= work.tpot_s
            assert work.gap_s is None or each.gap_s <= work.gap_s
            assert each.memory_bytes <= hardware.hbm_bytes * USABLE * (1 + 1e-9)
            assert work.input_tokens >= 8192 * (each.layout.cp if each.layout.cp > 1 else 0)
            assert each.role != "serve" or work.ttft_s is None or each.ttft_s <= work.ttft_s
            demand = Demand(
                each.under_way / each.layout.pp,
                work.input_tokens + work.output_tokens,
                min(each.chunk, work.input_tokens),
            )
            terms = memory_terms(question.shape, each.layout, question.precision, demand)
            assert terms.total <= hardware.hbm_bytes * USABLE * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_more_nodes_and_looser_limits_never_serve_less(seed: int) -> None:
    rng = random.Random(200 + seed)
    for _ in range(8):
        question, pools = random_instance(rng, DEVICES)
        question = replace(question, workload=replace(question.workload, rate=None))
        now = best_fleet(question, pools, CONSTANTS).rate
        loose = replace(question.workload, ttft_s=None, tpot_s=None)
        assert best_fleet(replace(question, workload=loose), pools, CONSTANTS).rate >= now - 1e-9
        more = tuple(replace(pool, nodes=pool.nodes + 1) for pool in pools)
        assert best_fleet(question, more, CONSTANTS).rate >= now - 1e-9
