"""The load has changed: which few copies should move?

Moving a copy costs its bytes; most of what is lost when a load changes comes back with few of them.
The search starts from the placement that is there and judges every change by its gain per copy
moved, within a budget. Copies that stay are free, and one that returns to where it was gives its
move back.

Legend: L layers, E experts, R slots, D devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...core.errors import RefusedError
from . import score
from .bound import bounds
from .layout import Floats, Layout, Slots, check_layout, checked_loads
from .plan import CopyPlan, Effort, Refine, refine_layer


@dataclass(frozen=True, slots=True)
class Replanned:
    """The new plan, and what stood before it."""

    plan: CopyPlan
    before_split_L: Floats  # largest loads of the old placement under the new load
    before_equal_L: Floats
    budget: int  # copies that were allowed to move, of each layer


def replan(
    current_LR: ArrayLike,
    loads_MLE: Sequence[ArrayLike],
    layout: Layout,
    moved_share: float = 0.1,
    shares: str = "split",
) -> Replanned:
    """At most `moved_share` of the copies of every layer move; scores are under the first load.

    With several loads the plan holds under each of them. `shares`: split or equal.
    """
    mixed = [checked_loads(load, f"load {i + 1}") for i, load in enumerate(loads_MLE)]
    if not mixed or len({load.shape for load in mixed}) > 1:
        raise RefusedError(f"{len(mixed)} loads of shapes {sorted({m.shape for m in mixed})}")
    first = mixed[0]
    check_layout(layout, first.shape[1])
    old = checked_slots(current_LR, layout, first.shape)
    budget = int(moved_share * layout.slots + 1e-9)
    found, steps = old.copy(), 0
    moved = np.zeros(len(first), dtype=np.int64)
    effort = Effort(8 * layout.devices, stuck=8)
    for layer in range(len(first)):
        lows = [bounds(load[layer][None], layout)[0] for load in mixed]
        work = np.stack([load[layer] / low for load, low in zip(mixed, lows, strict=True)], axis=1)
        was = held(old[layer], layout, first.shape[1])
        task = Refine(work, found[layer], layout, effort, was)
        limits = int(shares == "split"), budget, effort.stuck, effort.steps
        took, moved[layer] = refine_layer(task, limits)
        steps += took
    plan = CopyPlan(
        layout,
        found,
        np.asarray(bounds(first, layout)),
        score.equal_largest(first, found, layout),
        score.split_largest(first, found, layout),
        steps,
        moved,
    )
    before = score.split_largest(first, old, layout), score.equal_largest(first, old, layout)
    return Replanned(plan, *before, budget)


def held(slot_R: NDArray[np.int32], layout: Layout, experts: int) -> NDArray[np.uint8]:
    """[D, E] 1 where a device has a copy of an expert."""
    was = np.zeros((layout.devices, experts), dtype=np.uint8)
    was[np.arange(layout.slots) // layout.per_device, slot_R] = 1
    return was


def moved_copies(old_LR: Slots, new_LR: Slots, layout: Layout, experts: int) -> NDArray[np.int64]:
    """[L] copies on devices that did not have that expert before: each costs an expert's bytes."""
    pairs = zip(old_LR, new_LR, strict=True)
    return np.asarray(
        [
            int((held(new, layout, experts) > held(old, layout, experts)).sum())
            for old, new in pairs
        ],
        dtype=np.int64,
    )


def checked_slots(slot_LR: ArrayLike, layout: Layout, shape: tuple[int, ...]) -> Slots:
    """[L, R] a placement in which every expert of every layer has a copy, or RefusedError."""
    try:
        slots = np.ascontiguousarray(slot_LR, dtype=np.int32)
    except (ValueError, TypeError, OverflowError) as error:
        raise RefusedError(f"the current placement is no table of expert ids: {error}") from error
    if slots.shape != (shape[0], layout.slots):
        raise RefusedError(
            f"the current placement has shape {list(slots.shape)},"
            f" expected {shape[0]} layers of {layout.slots} slots"
        )
    if slots.min() < 0 or slots.max() >= shape[1]:
        raise RefusedError(f"the current placement names an expert outside 0..{shape[1] - 1}")
    for layer, row in enumerate(slots):
        missing = np.setdiff1d(np.arange(shape[1]), row)
        if missing.size:
            raise RefusedError(f"the current placement: layer {layer} has no expert {missing[0]}")
    return slots
