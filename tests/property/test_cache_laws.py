"""Laws of expert caches, over generated streams."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.memory.cache.catalogue import NAMES, make_policy
from moectl.memory.cache.foresight import TrajectoryPolicy
from moectl.memory.cache.simulate import ReplayRules, replay, shape_of
from moectl.memory.cache.trace import RoutingTrace


def _trace(choices: list[int], layers: int, experts: int, k: int) -> RoutingTrace:
    sets = list(itertools.permutations(range(experts), k))
    tokens = len(choices) // layers
    steps = np.array([sets[c % len(sets)] for c in choices[: tokens * layers]], np.int32)
    return RoutingTrace(
        steps.reshape(tokens, layers, k),
        experts,
        tuple(range(layers)),
        np.zeros(tokens, np.int32),
        np.arange(tokens, dtype=np.int32),
        np.zeros(tokens, np.uint8),
    )


@st.composite
def traces(draw: st.DrawFn, longest: int = 40) -> RoutingTrace:
    """Small traces of every shape."""
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    k = draw(st.integers(1, min(2, experts)))
    choices = draw(st.lists(st.integers(0, 40), min_size=2 * layers, max_size=longest))
    return _trace(choices, layers, experts, k)


def _hits(trace: RoutingTrace, name: str, rules: ReplayRules) -> int:
    return replay(trace, make_policy(name, trace, rules.slots), rules).hits


@given(traces(), st.data())
def test_no_policy_beats_min_and_counts_add_up(trace: RoutingTrace, data: st.DataObject) -> None:
    pool = data.draw(st.sampled_from(("shared", "per-layer")))
    unit = len(trace.layers) if pool == "per-layer" else 1
    slots = unit * data.draw(st.integers(1, trace.objects // unit))
    rules = ReplayRules(slots, pool)
    best = _hits(trace, "min", rules)
    for name in NAMES:
        found = replay(trace, make_policy(name, trace, slots), rules)
        assert found.hits <= best
        assert found.hits + found.loads == found.uses
        used = len(np.unique(trace.object_ids()))
        assert found.loads >= used


@given(traces(), st.data())
def test_min_never_gets_worse_with_more_slots(trace: RoutingTrace, data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, trace.objects - 1))
    assert _hits(trace, "min", ReplayRules(slots)) <= _hits(trace, "min", ReplayRules(slots + 1))


@settings(max_examples=60)
@given(traces(longest=9), st.integers(1, 3))
def test_min_equals_the_best_of_all_choices(trace: RoutingTrace, slots: int) -> None:
    stream = trace.object_ids().ravel().tolist()
    states: dict[frozenset[int], int] = {frozenset(): 0}  # residents -> most hits so far
    for wanted in stream:
        after: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            if wanted in held:
                options = [(held, hits + 1)]
            elif len(held) < slots:
                options = [(held | {wanted}, hits)]
            else:
                options = [(held - {out} | {wanted}, hits) for out in held]
            for state, score in options:
                after[state] = max(after.get(state, -1), score)
        states = after
    assert _hits(trace, "min", ReplayRules(slots)) == max(states.values())


@given(traces())
def test_with_a_slot_for_everything_only_first_uses_miss(trace: RoutingTrace) -> None:
    for name in ("lru", "trajectory", "plec", "min"):
        found = replay(trace, make_policy(name, trace, trace.objects), ReplayRules(trace.objects))
        assert found.loads == len(np.unique(trace.object_ids()))


@given(traces(), st.data())
def test_the_trajectory_policy_decides_alike_on_both_paths_and_is_finite(
    trace: RoutingTrace, data: st.DataObject
) -> None:
    slots = data.draw(st.integers(2, max(2, trace.objects)))
    for native in (True, False):
        policy = TrajectoryPolicy(shape_of(trace, slots), native=native)
        replay(trace, policy, ReplayRules(slots))
        worth = policy.worth()
        assert np.isfinite(worth).all()
        assert (worth >= 0).all()
        assert policy.memory.state.shares.sum() == pytest.approx(1.0, abs=1e-3)
