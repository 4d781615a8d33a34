"""Policies and simulator on streams small enough to be worked out by hand."""

import numpy as np
import pytest

from moectl.core.errors import RefusedError, UsageError
from moectl.memory.cache.belady import least_seconds, next_uses
from moectl.memory.cache.catalogue import NAMES, make_policy
from moectl.memory.cache.policy import CacheShape, FrequentRecent, LayerStep
from moectl.memory.cache.published import ActivationMatrix, LayerCycle, PredictedDemand
from moectl.memory.cache.simulate import ReplayRules, replay
from moectl.memory.cache.trace import RoutingTrace


def trace_of(experts: np.ndarray, experts_per_layer: int) -> RoutingTrace:
    tokens = len(experts)
    return RoutingTrace(
        experts.astype(np.int32),
        experts_per_layer,
        tuple(range(experts.shape[1])),
        np.zeros(tokens, np.int32),
        np.arange(tokens, dtype=np.int32),
        np.zeros(tokens, np.uint8),
    )


def _one_layer(stream: list[int], experts: int = 5) -> RoutingTrace:
    return trace_of(np.array(stream).reshape(-1, 1, 1), experts)


def _hits(trace: RoutingTrace, name: str, rules: ReplayRules) -> int:
    return replay(trace, make_policy(name, trace, rules.slots), rules).hits


def test_lru_and_min_count_the_textbook_stream() -> None:
    trace = _one_layer([0, 1, 2, 0, 1, 3, 0, 1, 2, 3])
    rules = ReplayRules(3)
    assert _hits(trace, "lru", rules) == 4
    assert _hits(trace, "min", rules) == 5
    assert _hits(trace, "on-demand", rules) == 0


def test_cyclic_order_is_worst_for_lru() -> None:
    trace = _one_layer([0, 1, 2, 3] * 10)
    assert _hits(trace, "lru", ReplayRules(3)) == 0
    assert _hits(trace, "min", ReplayRules(3)) > 20


def test_a_set_is_never_evicted_by_its_own_members() -> None:
    steps = np.array([[[0, 1]], [[2, 0]], [[1, 2]]])
    trace = trace_of(steps, 3)
    one = replay(trace, make_policy("lru", trace, 2), ReplayRules(2, protocol="one"))
    both = replay(trace, make_policy("lru", trace, 2), ReplayRules(2, protocol="set"))
    assert (one.hits, both.hits) == (0, 2)


def test_pools_of_layers_do_not_lend_each_other_slots() -> None:
    steps = np.array([[[0], [0]], [[1], [0]], [[0], [0]], [[1], [0]]])
    trace = trace_of(steps, 2)
    assert _hits(trace, "lru", ReplayRules(2, "per-layer")) == 3
    assert _hits(trace, "min", ReplayRules(3, "shared")) == 5


def test_rules_that_cannot_hold_are_refused() -> None:
    trace = trace_of(np.zeros((2, 3, 2), int), 4)
    for rules in (ReplayRules(4, "per-layer"), ReplayRules(1, "shared", "set"), ReplayRules(0)):
        with pytest.raises(RefusedError):
            replay(trace, make_policy("lru", trace, 4), rules)
    with pytest.raises(UsageError, match="use one of"):
        make_policy("magic", trace, 4)


def test_the_next_use_of_each_place_is_known_to_min_alone() -> None:
    far = next_uses(np.array([3, 1, 3, 1, 2]), 4)
    assert far[:2].tolist() == [2, 3]
    assert (far[2:] > 1_000_000).all()


def test_time_is_bound_by_computing_or_by_the_link() -> None:
    assert least_seconds(2.0, 10, 1_000, 1e4) == 2.0
    assert least_seconds(0.5, 10, 1_000, 1e4) == 1.0


def _step(layer: int, experts: list[int], width: int, lane: int = 0) -> LayerStep:
    ids = np.array(experts, np.int32)
    gates = np.full(len(experts), 1.0 / len(experts), np.float32)
    return LayerStep(lane, layer, ids, gates, [layer * width + e for e in experts])


def test_layer_cycle_keeps_what_its_layer_runs_next() -> None:
    policy = LayerCycle(CacheShape(4, 2, 1, 4))
    for layer in range(4):
        policy.start_step(_step(layer, [0], 2))
    worth = policy.worth()
    assert worth[0] > worth[2] > worth[4]  # equally popular, later and later
    assert worth[0] > worth[1]  # the used one of a layer is likelier


def test_the_activation_matrix_remembers_past_requests() -> None:
    policy = ActivationMatrix(CacheShape(2, 4, 1, 4, lanes=2))
    for _ in range(3):
        policy.start_step(_step(0, [1], 4))
        policy.start_step(_step(1, [2], 4))
    policy.end_request(0)
    policy.start_step(_step(0, [1], 4, lane=1))
    worth = policy.worth()
    assert worth[1] == worth[:4].max()
    assert worth[4 + 2] == worth[4:].max()


def test_predicted_demand_gives_slots_where_demand_is_spread() -> None:
    policy = PredictedDemand(CacheShape(2, 8, 1, 8))
    for token in range(200):
        policy.start_step(_step(0, [0], 8))  # always the same expert
        policy.start_step(_step(1, [token % 8], 8))
    policy.start_step(_step(0, [0], 8))
    resident = set(np.argsort(-policy.worth())[:8].tolist())
    assert 0 in resident
    assert sum(o >= 8 for o in resident) >= 5


def test_frequent_and_recent_beats_either_alone() -> None:
    policy = FrequentRecent(CacheShape(1, 3, 1, 2))
    for used in [0, 0, 0, 1, 2, 2]:
        policy.use(used)
    worth = policy.worth()
    assert worth[2] > worth[0] > worth[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_replays_in_both_pools_and_protocols(name: str) -> None:
    random = np.random.default_rng(3)
    steps = np.argsort(random.random((60, 4, 6)), axis=2)[:, :, :2]
    trace = trace_of(steps, 6)
    for pool in ("shared", "per-layer"):
        for protocol in ("one", "set"):
            rules = ReplayRules(12, pool, protocol, timed=True)
            found = replay(trace, make_policy(name, trace, 12), rules)
            assert found.hits + found.loads == found.uses == 480
            assert found.loads == int(found.misses.sum())
