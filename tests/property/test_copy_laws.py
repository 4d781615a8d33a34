"""Every expert has a copy, no layer is less even than EPLB's, and C decides as Python does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.placement.copies import native, plan, score
from moectl.placement.copies.bound import bound_layer, bounds
from moectl.placement.copies.eplb import eplb_slots
from moectl.placement.copies.layout import Layout
from moectl.placement.copies.plan import Effort, plan_layers, plan_mixture, thorough
from moectl.placement.copies.rebalance import rebalance_experts
from moectl.placement.copies.replan import moved_copies, replan

NEAR = 1 + 1e-9


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, int]:
    """Small layouts, with groups and nodes in some, and the number of experts."""
    nodes = draw(st.sampled_from([1, 1, 2]))
    groups = nodes * draw(st.integers(1, 3))
    devices = nodes * draw(st.integers(1, 3))
    experts = groups * draw(st.integers(1, 5))
    per_device = -(-experts // devices) + draw(st.integers(0, 3))
    return Layout(per_device * devices, devices, nodes, groups), experts


@st.composite
def tasks(draw: st.DrawFn, loads: int = 1) -> tuple[Layout, list[np.ndarray]]:
    layout, experts = draw(layouts())
    layers = draw(st.integers(1, 2))
    number = st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 10**6))
    rows = st.lists(number, min_size=experts, max_size=experts)
    tables = st.lists(rows, min_size=layers, max_size=layers)
    return layout, [np.asarray(draw(tables), dtype=float) for _ in range(loads)]


def checked(load: np.ndarray) -> np.ndarray:
    return np.where(load.sum(axis=1, keepdims=True) == 0, 1.0, load)


@settings(max_examples=80, deadline=None)
@given(tasks())
def test_no_layer_is_less_even_than_eplb(task) -> None:
    layout, (load,) = task
    eplb = score.equal_largest(checked(load), eplb_slots(checked(load), layout), layout)
    for effort in (Effort(0), plan.fast(layout), thorough(layout, "equal")):
        found = plan_layers(load, layout, effort)
        assert (found.equal_L <= eplb * NEAR).all()
        assert (found.bound_L <= found.equal_L * NEAR).all()
    split = plan_layers(load, layout, thorough(layout))
    best = score.split_largest(checked(load), eplb_slots(checked(load), layout), layout)
    assert (split.split_L <= np.minimum(eplb, best) * NEAR).all()
    assert (split.bound_L <= split.split_L * NEAR).all()


@settings(max_examples=80, deadline=None)
@given(tasks())
def test_the_maps_say_the_same_three_times(task) -> None:
    layout, (load,) = task
    answer = rebalance_experts(load, layout.slots, layout.groups, layout.nodes, layout.devices)
    to_logical, to_physical, count = answer
    assert to_logical.shape == (len(load), layout.slots)
    assert to_physical.shape == (*load.shape, count.max())
    for layer in range(len(load)):
        assert (count[layer] == np.bincount(to_logical[layer], minlength=load.shape[1])).all()
        assert count[layer].min() >= 1
        for expert, slots in enumerate(to_physical[layer]):
            used = slots[slots >= 0]
            assert len(used) == len(set(used.tolist())) == count[layer, expert]
            assert (to_logical[layer, used] == expert).all()


@pytest.mark.skipif(native.extension is None, reason="the C loops were not built")
@settings(max_examples=40, deadline=None)
@given(tasks())
def test_c_places_as_python_does(task) -> None:
    layout, (load,) = task
    efforts = [Effort(0), Effort(30, stuck=2), Effort(20, 20, 3), Effort(9, 9, 3, restarts=1)]
    fast = [plan_layers(load, layout, effort) for effort in efforts]
    maps = rebalance_experts(load, layout.slots, 1, 1, layout.devices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", None)
        slow = [plan_layers(load, layout, effort) for effort in efforts]
        slow_maps = rebalance_experts(load, layout.slots, 1, 1, layout.devices)
    for one, other in zip(fast, slow, strict=True):
        assert (one.slot_LR == other.slot_LR).all()
        assert one.steps == other.steps
        assert np.allclose(one.bound_L, other.bound_L, rtol=1e-12)
    assert all((a == b).all() for a, b in zip(maps, slow_maps, strict=True))


@pytest.mark.skipif(native.extension is None, reason="the C loops were not built")
@settings(max_examples=40, deadline=None)
@given(tasks(loads=3), st.sampled_from([0.0, 0.2]), st.sampled_from([0.1, 0.3]))
def test_c_mixes_and_replans_as_python_does(task, local: float, share: float) -> None:
    layout, loads = task
    effort = Effort(20, 20, 3)

    def both() -> tuple[np.ndarray, np.ndarray]:
        mixed = plan_mixture(loads, layout, effort, local)
        moved = replan(mixed.slot_LR, loads[:2], layout, share)
        return mixed.slot_LR, moved.plan.slot_LR

    fast = both()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", None)
        slow = both()
    assert all((one == other).all() for one, other in zip(fast, slow, strict=True))


@settings(max_examples=50, deadline=None)
@given(tasks(loads=2), st.sampled_from([0.0, 0.1, 0.25]), st.sampled_from(["split", "equal"]))
def test_a_replan_moves_no_more_than_it_may_and_is_not_worse(task, share, shares) -> None:
    layout, (first, second) = task
    old = plan_layers(first, layout).slot_LR
    found = replan(old, [second], layout, share, shares)
    moved = moved_copies(old, found.plan.slot_LR, layout, first.shape[1])
    assert (moved <= found.budget).all()
    assert (moved <= found.plan.moved_L).all()
    for row in found.plan.slot_LR:
        assert set(row.tolist()) == set(range(first.shape[1]))
    if shares == "split":
        assert (found.plan.split_L <= found.before_equal_L * NEAR).all()
    else:
        assert (found.plan.equal_L <= found.before_equal_L * NEAR).all()


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_the_bound_is_where_the_pieces_just_fit(task) -> None:
    layout, (load,) = task
    for load_E in checked(load):
        bound = bound_layer(load_E.tolist(), layout)
        mean = load_E.sum() / layout.devices
        pieces = np.maximum(1, np.ceil(load_E / bound - 1e-6)).sum()
        assert bound >= mean * (1 - 1e-9)
        if bound > mean * (1 + 1e-6):  # a little below, they do not fit any more
            assert np.maximum(1, np.ceil(load_E / (bound * 0.999) - 1e-6)).sum() > layout.slots
            assert pieces >= layout.slots - (load_E > 0).sum()
        assert bounds(load_E[None], layout)[0] == pytest.approx(bound, rel=1e-12)
