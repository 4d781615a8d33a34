"""The simulated link: waiting is counted, fetching ahead spares waiting and never loads."""

import numpy as np
import pytest

from moectl.memory.cache.belady import least_seconds
from moectl.memory.cache.catalogue import make_policy
from moectl.memory.cache.policy import LayerStep
from moectl.memory.cache.simulate import ReplayRules, replay
from moectl.memory.cache.timing import LinkModel, PrefetchPlan, StallSimulator
from moectl.memory.cache.trace import Floats, RoutingTrace

LINK = LinkModel(compute_s=1.0, expert_bytes=100, bytes_per_s=200.0)  # a load takes 0.5 s


def _trace(tokens: int = 40, layers: int = 4, experts: int = 6, k: int = 2) -> RoutingTrace:
    random = np.random.default_rng(8)
    steps = np.argsort(random.random((tokens, layers, experts)), axis=2)[:, :, :k]
    return RoutingTrace(
        steps.astype(np.int32),
        experts,
        tuple(range(layers)),
        np.zeros(tokens, np.int32),
        np.arange(tokens, dtype=np.int32),
        np.zeros(tokens, np.uint8),
    )


class _Oracle:
    """Knows the trace: for tests of the link alone."""

    def __init__(self, trace: RoutingTrace) -> None:
        self._trace, self._token = trace, -1

    def observe(self, step: LayerStep) -> None:
        self._token += step.layer == 0

    def scores(self, layer: int, target: int) -> Floats:
        scores = np.zeros(self._trace.experts_per_layer, np.float32)
        scores[self._trace.experts[self._token, target]] = 1.0
        return scores

    def freeze(self) -> None:
        return None


def _run(
    trace: RoutingTrace, slots: int, link: LinkModel = LINK, budget: int = 0
) -> StallSimulator:
    simulator = StallSimulator(make_policy("lru", trace, slots), slots, link)
    simulator.run(trace, _Oracle(trace) if budget else None, PrefetchPlan(budget, 1))
    return simulator


def test_with_everything_resident_only_first_loads_wait() -> None:
    trace = _trace()
    found = _run(trace, trace.objects).result
    used = len(np.unique(trace.object_ids()))
    assert found.loads == used
    assert found.stall_s == pytest.approx(used * 0.5)
    assert found.wall_s == pytest.approx(found.compute_s + found.stall_s)


def test_without_prefetch_loads_are_those_of_the_replay() -> None:
    trace = _trace()
    expected = replay(trace, make_policy("lru", trace, 8), ReplayRules(8, protocol="set"))
    found = _run(trace, 8).result
    assert found.loads == expected.loads
    assert found.stall_s == pytest.approx(0.5 * expected.loads)


def test_knowing_the_next_layer_hides_waiting_but_spares_no_load() -> None:
    trace = _trace()
    plain, ahead = _run(trace, 12).result, _run(trace, 12, budget=2).result
    least = replay(trace, make_policy("min", trace, 12), ReplayRules(12)).loads
    assert ahead.stall_s < 0.5 * plain.stall_s
    assert ahead.loads >= least
    assert ahead.wasted_loads == 0


def test_no_run_is_faster_than_its_bound() -> None:
    trace = _trace()
    for slots in (4, 8, 12, 20):
        least = replay(trace, make_policy("min", trace, slots), ReplayRules(slots)).loads
        for budget in (0, 2):
            found = _run(trace, slots, budget=budget).result
            bound = least_seconds(found.compute_s, least, LINK.expert_bytes, LINK.bytes_per_s)
            assert found.wall_s >= bound - 1e-9


def test_the_deciders_own_time_is_charged() -> None:
    trace = _trace()
    slow = LinkModel(1.0, 100, 200.0, decide_s=0.25)
    assert _run(trace, 8, slow).result.wall_s == pytest.approx(
        _run(trace, 8).result.wall_s + 0.25 * 40 * 4
    )
