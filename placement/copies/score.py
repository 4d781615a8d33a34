"""How even is a placement under a load, and which share of its expert does every copy take?

Three ways to divide an expert's tokens over its copies:

equal   every copy the same: what engines do that know no better
fixed   the shares that were best for the loads of planning, kept when the load changes
split   the best for the load at hand: what moectl's engine does per batch (`core.token_split`)

Balance is mean over largest load of a device, 1 when all have the same.
Legend: L layers, E experts, R slots, D devices, C distinct (expert, device) pairs of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.token_split import level_shares
from .layout import Floats, Layout, Slots


@dataclass(frozen=True, slots=True)
class Table:
    """Copies of one layer, expert by expert: those of e are start[e] .. start[e + 1]."""

    start_E1: NDArray[np.int32]
    device_C: NDArray[np.int32]


def table(slot_R: NDArray[np.int32], layout: Layout, experts: int) -> Table:
    """Where the copies are; two copies of an expert on one device count as one."""
    device_R = np.arange(layout.slots) // layout.per_device
    pairs = np.unique(slot_R.astype(np.int64) * layout.devices + device_R)
    counts = np.bincount(pairs // layout.devices, minlength=experts)
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    return Table(start, (pairs % layout.devices).astype(np.int32))


def best_shares(load_E: Floats, copies: Table, devices: int) -> tuple[Floats, float]:
    """([C] share of its expert that each copy takes, the largest load of a device)."""
    share_C = np.empty(len(copies.device_C))
    load = np.ascontiguousarray(load_E, dtype=np.float64)
    largest = level_shares(load, copies.start_E1, copies.device_C, share_C, devices)
    return share_C, largest


def split_largest(loads_LE: Floats, slot_LR: Slots, layout: Layout) -> Floats:
    """[L] the largest load of a device when tokens are split best."""
    experts = loads_LE.shape[1]
    return np.asarray(
        [
            best_shares(load_E, table(slot_R, layout, experts), layout.devices)[1]
            for load_E, slot_R in zip(loads_LE, slot_LR, strict=True)
        ]
    )


def equal_largest(loads_LE: Floats, slot_LR: NDArray[Any], layout: Layout) -> Floats:
    """[L] the largest load of a device when every copy of an expert takes the same."""
    layers = np.arange(len(loads_LE))[:, None]
    flat = slot_LR + layers * loads_LE.shape[1]
    count = np.bincount(flat.ravel(), minlength=loads_LE.size).reshape(loads_LE.shape)
    each_LR = np.take_along_axis(loads_LE / np.maximum(count, 1), slot_LR.astype(np.int64), axis=1)
    device_LD = each_LR.reshape(len(loads_LE), layout.devices, layout.per_device).sum(axis=2)
    largest: Floats = device_LD.max(axis=1)
    return largest


def fixed_largest(
    loads_LE: Floats, slot_LR: Slots, layout: Layout, shares_L: Sequence[Floats]
) -> Floats:
    """[L] the largest load of a device when copies keep the shares of planning."""
    largest = []
    for load_E, slot_R, share_C in zip(loads_LE, slot_LR, shares_L, strict=True):
        copies = table(slot_R, layout, loads_LE.shape[1])
        work_C = share_C * np.repeat(load_E, np.diff(copies.start_E1))
        device_D = np.bincount(copies.device_C, weights=work_C, minlength=layout.devices)
        largest.append(device_D.max())
    return np.asarray(largest)


def shares_of(loads_LE: Floats, slot_LR: Slots, layout: Layout) -> list[Floats]:
    """[L] of [C]: the best shares of every layer."""
    experts = loads_LE.shape[1]
    return [
        best_shares(load_E, table(slot_R, layout, experts), layout.devices)[0]
        for load_E, slot_R in zip(loads_LE, slot_LR, strict=True)
    ]


def balance(loads_LE: Floats, largest_L: Floats, layout: Layout) -> Floats:
    """[L] mean over largest load of a device."""
    result: Floats = loads_LE.sum(axis=1) / layout.devices / largest_L
    return result
