"""Laws of the planner, for all inputs, and against brute force where that is possible."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.core.plan import (
    DeviceId,
    Infeasible,
    Part,
    Placement,
    StepKind,
    TransitionKind,
    TransitionPlan,
    check_placement,
)
from moectl.placement.memory_model import Demand, DeviceMemory, held_bytes
from moectl.placement.quotas import choose_quotas, lower_bound_moves
from moectl.placement.transition import TransitionInput, plan_transition

PAGE = 16
EXPERT = 40  # bytes: not a multiple of the page, so that padding shows
MOVES = (StepKind.COPY, StepKind.LOAD)


def fleet(nodes: int, devices: int, hbm: int = 1 << 30) -> tuple[DeviceMemory, ...]:
    return tuple(
        DeviceMemory(DeviceId(f"n{node}", f"d{device}"), hbm, PAGE)
        for node in range(nodes)
        for device in range(devices)
    )


@st.composite
def journeys(draw: st.DrawFn) -> tuple[Demand, tuple[DeviceMemory, ...], list[int]]:
    """A model, a fleet and a list of widths to walk through."""
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    memories = fleet(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    widths = draw(st.lists(st.integers(1, len(memories)), min_size=1, max_size=5))
    return Demand(tuple(counts), EXPERT, 100, 64), memories, widths


def must_plan(**kwargs: object) -> TransitionPlan:
    plan = plan_transition(TransitionInput(**kwargs))  # type: ignore[arg-type]
    assert isinstance(plan, TransitionPlan), plan
    return plan


@settings(max_examples=150, deadline=None)
@given(journeys())
def test_every_width_after_every_width_keeps_all_laws(journey) -> None:
    demand, memories, widths = journey
    old: Placement | None = None
    for width in widths:
        kind = TransitionKind.SCALE if old else TransitionKind.CREATE
        plan = must_plan(
            kind=kind, model="m", demand=demand, memories=memories, old=old, width=width
        )
        check_placement(plan.new, demand.expert_counts)
        assert plan.new.width == width
        assert_counts_are_floor_or_ceil(plan.new, demand)
        assert plan.prediction.bytes_moved == plan.prediction.bytes_lower_bound
        assert_steps_lead_from_old_to_new(plan)
        assert_sources_hold_what_they_give(plan)
        assert_peak_is_what_the_steps_hold(plan, demand, memories)
        old = plan.new


def assert_counts_are_floor_or_ceil(placement: Placement, demand: Demand) -> None:
    for experts, count in zip(placement.owners, demand.expert_counts, strict=True):
        held = Counter(rank for holders in experts for rank in holders)
        allowed = {count // placement.width, -(-count // placement.width)}
        assert {held[rank] for rank in range(placement.width)} <= allowed


def copies(placement: Placement | None) -> set[tuple[DeviceId, int, int]]:
    if placement is None:
        return set()
    return {
        (device, layer, expert)
        for rank, device in enumerate(placement.ranks)
        for layer, expert in placement.experts_on(rank)
    }


def assert_steps_lead_from_old_to_new(plan: TransitionPlan) -> None:
    held = copies(plan.old)
    needed = {(layer, expert) for _, layer, expert in copies(plan.new)}
    for step in plan.steps:
        if step.part is not Part.EXPERT:
            continue
        copy = (step.target, step.layer, step.expert)
        if step.kind in MOVES:
            assert copy not in held
            held.add(copy)
        elif step.kind is StepKind.FREE:
            held.remove(copy)
            assert needed <= {(layer, expert) for _, layer, expert in held}
        else:
            assert copy in held
    assert held == copies(plan.new)


def assert_sources_hold_what_they_give(plan: TransitionPlan) -> None:
    held = copies(plan.old)
    for step in plan.steps:
        if step.kind is not StepKind.COPY:
            continue
        assert plan.old is not None
        if step.part is Part.EXPERT:
            assert (step.source, step.layer, step.expert) in held
        else:
            assert step.source in plan.old.ranks


def assert_peak_is_what_the_steps_hold(
    plan: TransitionPlan, demand: Demand, memories: tuple[DeviceMemory, ...]
) -> None:
    by_device = {memory.device: memory for memory in memories}
    slots = Counter(device for device, _, _ in copies(plan.old))
    slots.update(s.target for s in plan.steps if s.part is Part.EXPERT and s.kind in MOVES)
    for device, count in slots.items():
        assert plan.prediction.peak_bytes[str(device)] == held_bytes(
            demand, by_device[device], count
        )


@settings(max_examples=100, deadline=None)
@given(journeys(), st.integers(0, 400))
def test_no_device_ever_holds_more_than_its_hbm(journey, room: int) -> None:
    demand, memories, widths = journey
    tight = tuple(DeviceMemory(m.device, 176 + room, PAGE) for m in memories)
    old: Placement | None = None
    for width in widths:
        wanted = TransitionInput(TransitionKind.SCALE, "m", demand, tight, old, width)
        plan = plan_transition(wanted)
        if isinstance(plan, Infeasible):
            assert plan.reasons
            continue
        assert max(plan.prediction.peak_bytes.values()) <= 176 + room
        old = plan.new


@settings(max_examples=100, deadline=None)
@given(journeys(), st.data())
def test_a_lost_device_costs_only_its_own_experts(journey, data: st.DataObject) -> None:
    demand, memories, widths = journey
    old = must_plan(
        kind=TransitionKind.CREATE,
        model="m",
        demand=demand,
        memories=memories,
        old=None,
        width=widths[0],
    ).new
    lost = frozenset(data.draw(st.sets(st.sampled_from(old.ranks), min_size=1)))
    width = min(old.width, len(memories) - len(lost))
    if width < 1:
        return
    plan = must_plan(
        kind=TransitionKind.HEAL,
        model="m",
        demand=demand,
        memories=memories,
        old=old,
        width=width,
        lost=lost,
    )
    check_placement(plan.new, demand.expert_counts)
    assert not lost & set(plan.new.ranks)
    assert plan.prediction.bytes_moved == plan.prediction.bytes_lower_bound
    gone = {(layer, expert) for device, layer, expert in copies(old) if device in lost}
    loaded = {
        (step.layer, step.expert)
        for step in plan.steps
        if step.kind is StepKind.LOAD and step.part is Part.EXPERT
    }
    assert loaded == gone
    assert not any(step.source in lost for step in plan.steps)
    if width == old.width:  # replaced one for one: nothing else moves
        assert plan.prediction.bytes_moved == len(gone) * EXPERT


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.integers(1, 3),
    st.data(),
)
def test_moves_and_evenness_equal_brute_force(counts, width: int, data: st.DataObject) -> None:
    """Any present distribution, also ones that the planner itself would never make."""
    held_LW = np.asarray([draw_held(data, count, width) for count in counts], dtype=np.int64)
    layers = [layer_options(count, held) for count, held in zip(counts, held_LW, strict=True)]
    fewest = [min(moves for moves, _ in options) for options in layers]
    assert lower_bound_moves(counts, held_LW) == sum(fewest)
    cheapest = [
        [quota for moves, quota in options if moves == best]
        for options, best in zip(layers, fewest, strict=True)
    ]
    evenest = min(unevenness(np.asarray(choice)) for choice in itertools.product(*cheapest))
    quotas_LW = choose_quotas(counts, held_LW)
    for quota, options in zip(quotas_LW, cheapest, strict=True):
        assert tuple(quota.tolist()) in options
    assert unevenness(quotas_LW) == evenest


def draw_held(data: st.DataObject, count: int, width: int) -> list[int]:
    """Where each expert is now: on a rank or (index `width`) nowhere that stays."""
    places = data.draw(st.lists(st.integers(0, width), min_size=count, max_size=count))
    return [places.count(rank) for rank in range(width)]


def layer_options(count: int, held_W: np.ndarray) -> list[tuple[int, tuple[int, ...]]]:
    """(moves, quotas) of every quota vector of floors and ceils that sums to the layer."""
    width = len(held_W)
    choices = itertools.product({count // width, -(-count // width)}, repeat=width)
    return [
        (count - int(np.minimum(held_W, quota).sum()), quota)
        for quota in choices
        if sum(quota) == count
    ]


def unevenness(quotas_LW: np.ndarray) -> int:
    return int((quotas_LW.sum(axis=0) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_larger_fleets_reach_the_evenest_totals(data: st.DataObject) -> None:
    """With nothing held every extra is free, and then totals differ by at most one."""
    width = data.draw(st.integers(1, 40))
    counts = data.draw(st.lists(st.integers(1, 130), min_size=1, max_size=20))
    quotas_LW = choose_quotas(counts, np.zeros((len(counts), width), dtype=np.int64))
    totals = quotas_LW.sum(axis=0)
    assert totals.max() - totals.min() <= 1
