"""The trajectory memory: what it learns, that it never looks ahead, and that both paths agree."""

import dataclasses

import numpy as np
import pytest

from moectl.core.errors import UsageError
from moectl.memory.cache.catalogue import make_policy
from moectl.memory.cache.foresight import TrajectoryPolicy
from moectl.memory.cache.native import backend_name
from moectl.memory.cache.policy import CacheShape
from moectl.memory.cache.simulate import ReplayRules, replay, shape_of
from moectl.memory.cache.trace import RoutingTrace
from moectl.memory.cache.trajectory import TrajectoryMemory
from moectl.memory.cache.trajectory_state import TrajectorySettings, TrajectoryShape

needs_native = pytest.mark.skipif(
    backend_name() != "native", reason="the compiled loops are not built here"
)


def _random(tokens: int, layers: int, experts: int, k: int = 2, seed: int = 5) -> RoutingTrace:
    """Tokens drawn from 12 kinds, each with its own path, with some noise."""
    random = np.random.default_rng(seed)
    paths = np.argsort(random.random((12, layers, experts)), axis=2)[:, :, :k]
    steps = paths[random.integers(0, 12, tokens)]
    noisy = random.random((tokens, layers)) < 0.2
    steps[noisy] = np.argsort(random.random((int(noisy.sum()), experts)), axis=1)[:, :k]
    weights = random.random((tokens, layers, k)).astype(np.float32) + 0.1
    return RoutingTrace(
        steps.astype(np.int32),
        experts,
        tuple(range(layers)),
        np.zeros(tokens, np.int32),
        np.arange(tokens, dtype=np.int32),
        np.zeros(tokens, np.uint8),
        weights=weights,
    )


def _feed(memory: TrajectoryMemory, trace: RoutingTrace, lane: int = 0) -> None:
    gates = trace.gates()
    for token in range(trace.tokens):
        for layer in range(len(trace.layers)):
            memory.observe(lane, layer, trace.experts[token, layer], gates[token, layer])


@needs_native
@pytest.mark.parametrize("history", [16, 64])
def test_compiled_loops_and_reference_agree(history: int) -> None:
    trace = _random(90, 5, 8)
    settings = TrajectorySettings(history=history)
    memories = [
        TrajectoryMemory(TrajectoryShape(5, 8, 2, 16), settings, native=native)
        for native in (True, False)
    ]
    gates, lanes = trace.gates(), np.zeros(1, np.int32)
    for token in range(trace.tokens):
        for layer in range(5):
            for memory in memories:
                memory.observe(0, layer, trace.experts[token, layer], gates[token, layer])
            fast, slow = (memory.keep_values(layer, lanes) for memory in memories)
            np.testing.assert_allclose(fast, slow, rtol=2e-4, atol=1e-6)
    fast, slow = (memory.predict(0, 4, 0) for memory in memories)
    np.testing.assert_allclose(fast, slow, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(memories[0].state.shares, memories[1].state.shares, rtol=1e-3)


@needs_native
def test_compiled_loops_and_reference_agree_on_several_lanes() -> None:
    trace = _random(60, 3, 6)
    shape = TrajectoryShape(3, 6, 2, 9, lanes=3)
    memories = [
        TrajectoryMemory(shape, TrajectorySettings(history=24), native=native)
        for native in (True, False)
    ]
    gates, lanes = trace.gates(), np.arange(3, dtype=np.int32)
    for start in range(0, 60, 3):
        for layer in range(3):
            for memory in memories:
                for lane in range(3):
                    token = start + lane
                    memory.observe(lane, layer, trace.experts[token, layer], gates[token, layer])
            fast, slow = (memory.keep_values(layer, lanes) for memory in memories)
            np.testing.assert_allclose(fast, slow, rtol=2e-4, atol=1e-6)
        if start == 30:
            for memory in memories:
                memory.finish(1)


def test_a_path_seen_before_is_recognised() -> None:
    trace = _random(200, 6, 8)
    repeated = trace.take(np.r_[np.arange(200), np.arange(40)])
    memory = TrajectoryMemory(TrajectoryShape(6, 8, 2, 24))
    _feed(memory, repeated.take(np.arange(239)))
    last = repeated.take(np.arange(239, 240))
    gates, named = last.gates(), 0
    for layer in range(5):
        memory.observe(0, layer, last.experts[0, layer], gates[0, layer])
        best = np.argsort(-memory.predict(0, layer, layer + 1))[:2]
        named += len(set(best.tolist()) & set(last.experts[0, layer + 1].tolist()))
    assert named >= 8  # of 10


def test_decisions_never_depend_on_the_future() -> None:
    trace = _random(80, 4, 8)
    other = dataclasses.replace(trace, experts=trace.experts.copy())
    other.experts[50:] = (other.experts[50:] + 3) % 8
    rules = ReplayRules(12)
    found = [replay(t, TrajectoryPolicy(shape_of(t, 12)), rules) for t in (trace, other)]
    assert np.array_equal(found[0].misses[: 50 * 4], found[1].misses[: 50 * 4])


def test_memory_is_bounded_however_long_it_runs() -> None:
    memory = TrajectoryMemory(TrajectoryShape(3, 6, 2, 9), TrajectorySettings(history=8))
    before = memory.state.bytes
    _feed(memory, _random(100, 3, 6))
    assert memory.state.bytes == before
    assert (memory.state.closed == 1).sum() <= 8


def test_a_finished_request_leaves_its_routes_but_not_its_context() -> None:
    memory = TrajectoryMemory(TrajectoryShape(3, 6, 2, 9))
    _feed(memory, _random(20, 3, 6))
    memory.finish(0)
    state = memory.state
    assert (state.closed == 1).sum() == 20
    assert state.open_row[0] == -1
    assert not state.context[0].any()


def test_trust_moves_to_recency_where_only_recency_helps() -> None:
    random = np.random.default_rng(0)
    steps, stack = [], list(range(16))
    for _ in range(600):
        depths = random.choice(3, 2, replace=False)
        used = [stack[d] for d in depths]
        if random.random() < 0.1:
            used = random.choice(16, 2, replace=False).tolist()
        stack = [*used, *(e for e in stack if e not in used)]
        steps.append([used])
    trace = dataclasses.replace(
        _random(600, 1, 16), experts=np.array(steps, np.int32), weights=None
    )
    memory = TrajectoryMemory(TrajectoryShape(1, 16, 2, 4))
    _feed(memory, trace)
    assert memory.state.shares[2] == memory.state.shares.max()


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UsageError):
        TrajectorySettings(history=1)
    with pytest.raises(UsageError, match="too short"):
        TrajectoryMemory(TrajectoryShape(2, 4, 1, 4, lanes=9), TrajectorySettings(history=16))


def test_the_policy_shares_lanes_when_there_are_more_requests() -> None:
    policy = TrajectoryPolicy(CacheShape(2, 4, 1, 4, lanes=500))
    assert policy.memory.state.shape.lanes == 64


def _stack_stream(tokens: int, layers: int, experts: int, seed: int = 0) -> RoutingTrace:
    """Uses depend on recency alone: the case that LRU is made for."""
    random = np.random.default_rng(seed)
    steps = np.zeros((tokens, layers, 2), np.int32)
    for layer in range(layers):
        stack = random.permutation(experts).tolist()
        for token in range(tokens):
            used: list[int] = []
            while len(used) < 2:
                expert = stack[min(random.geometric(0.25) - 1, experts - 1)]
                used += [expert] if expert not in used else []
            stack = [*used, *(e for e in stack if e not in used)]
            steps[token, layer] = used
    base = _random(tokens, layers, experts)
    return dataclasses.replace(base, experts=steps, weights=None)


@pytest.mark.parametrize("pool", ["shared", "per-layer"])
def test_it_stays_with_lru_where_nothing_but_recency_helps(pool: str) -> None:
    trace = _stack_stream(400, 4, 16)
    for slots in (16, 32, 48):
        rules = ReplayRules(slots, pool)
        lru = replay(trace, make_policy("lru", trace, slots), rules).hit_rate
        assert replay(trace, TrajectoryPolicy(shape_of(trace, slots)), rules).hit_rate > lru - 0.01
