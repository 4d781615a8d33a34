"""Which copies of which experts on which devices, for one load or for all of several?

Every layer starts from EPLB's answer and is refined from there, so it is never worse; without any
refinement it is EPLB's. The search counts steps, not seconds: same input, same plan, on any
machine. Three ways in:

plan_layers   one load
plan_mixture  several loads: the largest load of a device under any of them is made small
replan        a placement that is there and new loads: at most so many copies move

A plan carries its lower bound, so that "how much is left" is never a guess.
Legend: M mixed loads, L layers, E experts, R slots, D devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import native, score
from .bound import bounds
from .eplb import eplb_layer
from .layout import Floats, Layout, Slots, check_layout, checked_loads
from .search_reference import Search, Task

SWEEPS = 4  # rounds of pouring before the first step
JITTER = 0.1  # of the loads, for the starts of further searches: other copies, nearly as good


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to search: steps per layer. Without `pours`, for copies with equal shares."""

    steps: int  # 0: EPLB's answer, whatever the others say
    pours: int = 0  # further steps for copies that may carry unequal shares
    stuck: int = 8  # devices that nothing helps, before the end; -1: swaps only, at the first
    near: float = 1e-4  # a layer within this of its bound is done
    restarts: int = 0  # further searches, each from EPLB's answer to slightly other loads


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Copies on devices, for all layers, and how good that is under the loads it was made for.

    `slot_LR[l][r]` is the expert of slot r, which lies on device r // per_device. `bound_L` and the
    largest loads are in the unit of the (first) load; shares are those of `score.table`.
    """

    layout: Layout
    slot_LR: Slots
    bound_L: Floats
    equal_L: Floats  # largest load of a device when copies share equally
    split_L: Floats  # and when the tokens are split best
    steps: int  # looks at a fullest device, all layers
    moved_L: NDArray[np.int64]  # copies that were not there before; all of them for a new plan


def quick() -> Effort:
    """EPLB's answer as it is."""
    return Effort(0)


def fast(layout: Layout) -> Effort:
    """What can be afforded on the fly: swaps alone, about one look for every device."""
    return Effort(layout.devices * 5 // 4, stuck=-1)


def thorough(layout: Layout, shares: str = "split") -> Effort:
    """Until nothing helps any more. `shares`: equal, or split (they may be unequal)."""
    if shares == "equal":
        return Effort(8 * layout.devices, 0, max(8, layout.devices // 4))
    # With few slots a search ends in a corner; others, from nearby starts, in better ones.
    restarts = 3 if layout.per_device <= 4 else 0
    # A start that is even with equal shares, and then most of the search with unequal ones.
    devices = layout.devices
    return Effort(devices, 16 * devices, max(8, devices // 3), restarts=restarts)


def plan_layers(load_LE: ArrayLike, layout: Layout, effort: Effort | None = None) -> CopyPlan:
    """A plan for one load; never worse than EPLB on any layer. RefusedError on bad input."""
    loads = checked_loads(load_LE)
    check_layout(layout, loads.shape[1])
    effort = effort or fast(layout)
    first, found, steps = searched(loads, layout, effort)
    plan = _judged(loads, layout, found, steps)
    if effort.pours > 0:
        plan = _better_of(plan, _judged(loads, layout, first, 0))
    for turn in range(effort.restarts if effort.steps > 0 else 0):
        plan = _better_of(plan, _restarted(loads, plan, effort, turn))
    return plan


def _restarted(loads: Floats, plan: CopyPlan, effort: Effort, turn: int) -> CopyPlan:
    """Another search of the layers that are not at their bound, from a start that differs a bit."""
    layout = plan.layout
    jitter = np.random.default_rng(turn).uniform(1 - JITTER, 1 + JITTER, loads.shape)
    found = searched(np.ascontiguousarray(loads * jitter), layout, quick())[1].copy()
    steps = 0
    for layer in np.flatnonzero(plan.split_L > plan.bound_L * (1 + effort.near)).tolist():
        work_E1 = (loads[layer] / plan.bound_L[layer])[:, None]
        took, _ = _refined(Refine(work_E1, found[layer], layout, effort), -1)
        steps += took
    return _judged(loads, layout, found, steps)


def searched(loads_LE: Floats, layout: Layout, effort: Effort) -> tuple[Slots, Slots, int]:
    """(EPLB's slots, the refined ones, steps taken), without scores: the part that is timed."""
    if native.extension is None:
        return _searched_by_reference(loads_LE, layout, effort)
    count = len(loads_LE)
    found = np.empty((count, layout.slots), dtype=np.int32)
    figures = np.empty((count, 4))
    sizes = loads_LE.shape[1], layout.slots, layout.devices, layout.groups, layout.nodes
    first = found
    if effort.pours > 0:
        first = np.empty_like(found)
        native.extension.plan(loads_LE, first, figures, sizes, (0, 0, 0, 0), effort.near)
    search = effort.steps, SWEEPS, effort.pours, effort.stuck
    native.extension.plan(loads_LE, found, figures, sizes, search, effort.near)
    return first, found, int(figures[:, 3].sum())


def _searched_by_reference(
    loads_LE: Floats, layout: Layout, effort: Effort
) -> tuple[Slots, Slots, int]:
    first, found, steps = [], [], 0
    for load_E, bound in zip(loads_LE, bounds(loads_LE, layout), strict=True):
        slots = eplb_layer(load_E.tolist(), layout)
        first.append(list(slots))
        largest = float(score.equal_largest(load_E[None], np.asarray([slots]), layout)[0])
        if effort.steps > 0 and largest > bound * (1 + effort.near):
            task = Task([[load / bound] for load in load_E.tolist()], [1.0], slots, layout.devices)
            task = replace(task, near=effort.near, stuck_max=effort.stuck)
            steps += Search(task, 0).run(effort.steps)
            if effort.pours > 0:
                steps += Search(replace(task, pours=True), SWEEPS).run(effort.pours)
            elif score.equal_largest(load_E[None], np.asarray([slots]), layout)[0] > largest:
                slots = first[-1]
        found.append(slots)
    return np.asarray(first, dtype=np.int32), np.asarray(found, dtype=np.int32), steps


def _judged(loads: Floats, layout: Layout, slot_LR: Slots, steps: int) -> CopyPlan:
    return CopyPlan(
        layout=layout,
        slot_LR=slot_LR,
        bound_L=np.asarray(bounds(loads, layout)),
        equal_L=score.equal_largest(loads, slot_LR, layout),
        split_L=score.split_largest(loads, slot_LR, layout),
        steps=steps,
        moved_L=np.full(len(loads), layout.slots, dtype=np.int64),
    )


def _better_of(plan: CopyPlan, other: CopyPlan) -> CopyPlan:
    """Per layer the one that is better when tokens are split; its steps count in any case."""
    worse = other.split_L < plan.split_L
    return replace(
        plan,
        steps=plan.steps + other.steps,
        slot_LR=np.where(worse[:, None], other.slot_LR, plan.slot_LR),
        equal_L=np.where(worse, other.equal_L, plan.equal_L),
        split_L=np.where(worse, other.split_L, plan.split_L),
    )


def plan_mixture(
    loads_MLE: Sequence[ArrayLike], layout: Layout, effort: Effort | None = None, local: float = 0.0
) -> CopyPlan:
    """A plan that holds under every one of the loads, whatever their sizes: minimax.

    `local` is the price of work away from an expert's home node, where the layout has nodes and
    groups: 0 ignores locality, 0.1 keeps most of it. Scores are under the sum of the loads, each
    counted alike.
    """
    mixed = [checked_loads(load, f"load {i + 1}") for i, load in enumerate(loads_MLE)]
    mean = _mean_load(mixed)
    check_layout(layout, mean.shape[1])
    effort = effort or thorough(layout, "equal")
    start = searched(mean, layout, quick())[1]
    found, steps = start.copy(), 0
    for layer in range(len(mean)):
        work_EM = np.stack([_scaled(load[layer], layout) for load in mixed], axis=1)
        home = start_home(start[layer], layout, mean.shape[1]) if local > 0 else None
        took, _ = _refined(Refine(work_EM, found[layer], layout, effort, None, home, local), -1)
        steps += took
    plan = _judged(mean, layout, found, steps)
    return plan


def _mean_load(mixed: list[Floats]) -> Floats:
    from ...core.errors import RefusedError

    if not mixed:
        raise RefusedError("no load to plan for")
    shapes = {load.shape for load in mixed}
    if len(shapes) > 1:
        raise RefusedError(f"loads of different shapes {sorted(shapes)}: they are of other models")
    return np.ascontiguousarray(
        np.mean([load / load.sum(axis=1, keepdims=True) for load in mixed], axis=0)
    )


def _scaled(load_E: Floats, layout: Layout) -> Floats:
    """Loads in units of the bound of their layer."""
    return load_E / bounds(load_E[None], layout)[0]


def start_home(slot_R: NDArray[np.int32], layout: Layout, experts: int) -> NDArray[np.int32]:
    """[E] the node that EPLB's hierarchical mode gave each expert."""
    home = np.empty(experts, dtype=np.int32)
    home[slot_R] = np.repeat(layout.node_of(), layout.per_device)
    return home


@dataclass(slots=True)
class Refine:
    """One layer's search, for either implementation; `slot_R` is changed in place."""

    work_EK: Floats
    slot_R: NDArray[np.int32]
    layout: Layout
    effort: Effort
    was_DE: NDArray[np.uint8] | None = None
    home_E: NDArray[np.int32] | None = None
    local: float = 0.0


def _refined(r: Refine, budget: int) -> tuple[int, int]:
    """(steps, moved): equal shares first, then, where the effort says so, unequal ones."""
    steps = moved = 0
    for pours, limit in ((0, r.effort.steps), (1, r.effort.pours)):
        if limit > 0:
            took, moved = refine_layer(r, (pours, budget, r.effort.stuck, limit))
            steps += took
    return steps, moved


def refine_layer(r: Refine, limits: tuple[int, int, int, int]) -> tuple[int, int]:
    """One search from `r.slot_R`; limits: pours, budget, stuck devices, steps."""
    pours, budget, stuck, steps = limits
    layout, loads = r.layout, r.work_EK.shape[1]
    node = layout.node_of()
    if native.extension is not None:
        was = r.was_DE if r.was_DE is not None else b""
        home = r.home_E if r.home_E is not None else b""
        work = np.ascontiguousarray(r.work_EK)
        o = layout.devices, pours, budget, stuck, steps, SWEEPS
        took: tuple[int, int] = native.extension.refine(
            work, np.ones(loads), r.slot_R, was, home, node, o, r.effort.near, r.local
        )
        return took
    task = Task(r.work_EK.tolist(), [1.0] * loads, r.slot_R.tolist(), layout.devices)
    was_D = [] if r.was_DE is None else [set(np.flatnonzero(row).tolist()) for row in r.was_DE]
    home_E = [] if r.home_E is None else r.home_E.tolist()
    task.was, task.home_E, task.node_D, task.local = was_D, home_E, node.tolist(), r.local
    task.pours, task.budget, task.near, task.stuck_max = bool(pours), budget, r.effort.near, stuck
    search = Search(task, SWEEPS)
    done = search.run(steps)
    r.slot_R[:] = task.slots
    return done, search.moved
