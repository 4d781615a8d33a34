"""EPLB's own interface, so that an engine that calls it can call this instead."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import native
from .layout import Layout, Slots, check_layout, checked_loads
from .plan import Effort, fast, searched

Maps = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int = 1,
    num_nodes: int = 1,
    num_gpus: int = 1,
    effort: Effort | None = None,
) -> Maps:
    """(physical_to_logical_map [L, R], logical_to_physical_map [L, E, X], logical_count [L, E]).

    `weight` [L, E] are loads (an array, nested lists or a tensor on the CPU). As in EPLB, copies of
    an expert are meant to share equally, unused places of the second map are -1, and X is the most
    copies of any expert. No layer is ever less even than EPLB's; `Effort(0)` is EPLB's answer.
    RefusedError on bad input; a layer of zeros is planned as if its experts were used alike.
    """
    loads = checked_loads(weight, "weight")
    layout = Layout(num_replicas, num_gpus, num_nodes, num_groups)
    check_layout(layout, loads.shape[1])
    slots = searched(loads, layout, effort or fast(layout))[1]
    return maps(slots, loads.shape[1])


def maps(slot_LR: Slots, experts: int) -> Maps:
    """The three maps of a placement."""
    layers = len(slot_LR)
    flat = slot_LR + np.arange(layers)[:, None] * experts
    count = np.bincount(flat.ravel(), minlength=layers * experts).reshape(layers, experts)
    most = int(count.max())
    if native.extension is not None:
        slots_of = np.empty((layers, experts, most), dtype=np.int64)
        count = np.empty((layers, experts), dtype=np.int64)
        native.extension.index(slot_LR, slots_of, count, (layers, experts, most))
        return slot_LR.astype(np.int64), slots_of, count
    slots_of = np.full((layers, experts, most), -1, dtype=np.int64)
    seen = np.zeros((layers, experts), dtype=np.int64)
    for layer in range(layers):
        for slot, expert in enumerate(slot_LR[layer].tolist()):
            slots_of[layer, expert, seen[layer, expert]] = slot
            seen[layer, expert] += 1
    return slot_LR.astype(np.int64), slots_of, count
