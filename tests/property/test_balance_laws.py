"""Loads decide which experts move, never how many; the fullest rank is the emptiest possible."""

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.core.plan import DeviceId, TransitionKind, TransitionPlan
from moectl.placement.balance import balance_layer, largest_load
from moectl.placement.memory_model import Demand, DeviceMemory
from moectl.placement.transition import TransitionInput, plan_transition

NEAR = 1.02  # the promise: within 2 % of the best reachable for the same bytes


def moves(owner_E, home_E) -> int:
    return sum(owner != home for owner, home in zip(owner_E, home_E, strict=True))


def best_reachable(owner_E, home_E, load_E, width: int) -> float:
    """Brute force over every assignment with the same counts and no more moves."""
    counts, allowed = Counter(owner_E), moves(owner_E, home_E)
    return min(
        largest_load(choice, load_E, width)
        for choice in itertools.product(range(width), repeat=len(owner_E))
        if Counter(choice) == counts and moves(choice, home_E) <= allowed
    )


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_small_layers_reach_the_best_within_two_percent(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 3))
    count = data.draw(st.integers(2, 7))
    ranks = st.integers(0, width - 1)
    owner_E = data.draw(st.lists(ranks, min_size=count, max_size=count))
    home_E = data.draw(st.lists(st.none() | ranks, min_size=count, max_size=count))
    load_E = data.draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    found = balance_layer(owner_E, home_E, load_E, width)
    assert Counter(found) == Counter(owner_E)
    assert moves(found, home_E) <= moves(owner_E, home_E)
    best = best_reachable(owner_E, home_E, load_E, width)
    assert largest_load(found, load_E, width) <= NEAR * best + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_loads_cost_no_byte_and_make_no_layer_worse(data: st.DataObject) -> None:
    counts = tuple(data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=3)))
    memories = tuple(DeviceMemory(DeviceId("n1", f"d{i}"), 1 << 30, 16) for i in range(6))
    demand = Demand(counts, 40, 100, 64)
    first, second = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    loads = tuple(
        tuple(data.draw(st.lists(st.integers(0, 99), min_size=c, max_size=c))) for c in counts
    )

    def plan(old, width: int, given) -> TransitionPlan:
        kind = TransitionKind.SCALE if old else TransitionKind.CREATE
        wanted = TransitionInput(kind, "m", demand, memories, old, width, loads=given)
        answer = plan_transition(wanted)
        assert isinstance(answer, TransitionPlan), answer
        return answer

    old = plan(None, first, ()).new
    blind, seeing = plan(old, second, ()), plan(old, second, loads)
    assert seeing.prediction.bytes_moved == blind.prediction.bytes_lower_bound
    for layer, load_E in enumerate(loads):
        fullest = [
            largest_load([holders[0] for holders in p.new.owners[layer]], load_E, second)
            for p in (blind, seeing)
        ]
        assert fullest[1] <= fullest[0] + 1e-9


def test_loads_of_another_shape_are_left_aside() -> None:
    demand = Demand((4,), 40, 100, 64)
    memories = tuple(DeviceMemory(DeviceId("n1", f"d{i}"), 1 << 30, 16) for i in range(2))
    wanted = TransitionInput(TransitionKind.CREATE, "m", demand, memories, None, 2)
    strange = TransitionInput(
        TransitionKind.CREATE, "m", demand, memories, None, 2, loads=((9.0, 1.0),)
    )
    assert plan_transition(strange) == plan_transition(wanted)
