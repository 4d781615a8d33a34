"""The baseline: EPLB, written anew from its published description.

Copies are handed out one at a time, each to the expert with the most work per copy; then all
copies, heaviest first, go to the lightest device that has a slot. That is its global mode. Where
the expert groups divide over the nodes, the hierarchical mode first packs whole groups to nodes and
then does the same inside every node. Copies of an expert share its work equally; it may put two of
them on one device, and it knows nothing of where experts are now.

`_greedy.h` is the same in C. Legend: L layers, E experts, R slots.
"""

from collections.abc import Sequence

import numpy as np

from .layout import Floats, Layout, Slots


def eplb_layer(load_E: Sequence[float], layout: Layout) -> list[int]:
    """[R] the expert of every slot, device by device."""
    groups, nodes = layout.groups, layout.nodes
    if groups % nodes:
        groups = nodes = 1
    size, per_node = len(load_E) // groups, groups // nodes
    weights = [_total(load_E[q * size : (q + 1) * size]) for q in range(groups)]
    packed = pack(weights, nodes)
    slots: list[int] = []
    for node in range(nodes):
        chosen = packed[node * per_node : (node + 1) * per_node]
        mine = [q * size + i for q in chosen for i in range(size)]
        slots += _replicate_and_pack(load_E, mine, layout.slots // nodes, layout.devices // nodes)
    return slots


def _total(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:  # in order, as in C: `sum` rounds otherwise since Python 3.12
        total += value
    return total


def _replicate_and_pack(
    load_E: Sequence[float], experts: list[int], slots: int, devices: int
) -> list[int]:
    count = [1] * len(experts)
    each = [load_E[e] for e in experts]
    copies = list(range(len(experts)))  # one of each, then the further ones as they are given
    for _ in range(slots - len(experts)):
        at = max(range(len(each)), key=each.__getitem__)
        copies.append(at)
        count[at] += 1
        each[at] = load_E[experts[at]] / count[at]
    value = [each[i] for i in copies]
    return [experts[copies[i]] for i in pack(value, devices)]


def pack(value: Sequence[float], packs: int) -> list[int]:
    """Items, heaviest first, each to the lightest pack that has room; listed pack by pack."""
    room = len(value) // packs
    placed: list[list[int]] = [[] for _ in range(packs)]
    load = [0.0] * packs
    for item in sorted(range(len(value)), key=lambda i: -value[i]):
        at = min((p for p in range(packs) if len(placed[p]) < room), key=load.__getitem__)
        placed[at].append(item)
        load[at] += value[item]
    return [item for items in placed for item in items]


def eplb_slots(loads_LE: Floats, layout: Layout) -> Slots:
    """[L, R] by the reference alone: slow, for comparison."""
    return np.asarray([eplb_layer(load_E.tolist(), layout) for load_E in loads_LE], dtype=np.int32)
