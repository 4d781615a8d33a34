"""What is planned for: loads that were looked at once, and how many slots lie on which devices?

Bad input never becomes a plan. Loads that are NaN, infinite or negative, layers of different size
and too few slots are refused, naming the place. A layer without any load is planned as if all of
its experts were used alike: nothing is known of it, and an even spread is the safest guess.

Legend: L layers, E experts, R slots, D devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...core.errors import RefusedError

Floats = NDArray[np.float64]
Slots = NDArray[np.int32]  # the expert of every slot; slot r lies on device r // slots_per_device


@dataclass(frozen=True, slots=True)
class Layout:
    """Slots of one layer, spread evenly over devices, and these over nodes.

    `groups` are the expert groups of group-limited routing (neighbouring ids form a group).
    """

    slots: int
    devices: int
    nodes: int = 1
    groups: int = 1

    @property
    def per_device(self) -> int:
        """Slots of a device."""
        return self.slots // self.devices

    def node_of(self) -> NDArray[np.int32]:
        """[D] node of every device."""
        return (np.arange(self.devices) // (self.devices // self.nodes)).astype(np.int32)


def check_layout(layout: Layout, experts: int) -> None:
    """RefusedError unless every expert finds a slot and devices and nodes divide evenly."""
    if min(layout.slots, layout.devices, layout.nodes, layout.groups) < 1:
        raise RefusedError(f"{layout}: every number must be at least 1")
    if layout.slots < experts:
        raise RefusedError(
            f"{layout.slots} slots for {experts} experts:"
            f" {experts - layout.slots} would have no copy",
            next_step=f"give at least {-(-experts // layout.devices) * layout.devices} slots",
        )
    if layout.slots % layout.devices or layout.devices % layout.nodes:
        raise RefusedError(
            f"{layout.slots} slots on {layout.devices} devices of {layout.nodes} nodes:"
            " not the same number everywhere",
            next_step=f"slots must be a multiple of {layout.devices}, and that of {layout.nodes}",
        )
    if experts % layout.groups:
        raise RefusedError(f"{experts} experts do not form {layout.groups} groups of one size")


def checked_loads(loads_LE: ArrayLike | Sequence[ArrayLike], where: str = "loads") -> Floats:
    """[L, E] finite loads, at least 0, as float64; layers without load become all ones.

    RefusedError naming `where`, layer and expert otherwise.
    """
    try:
        loads = np.asarray(loads_LE, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise RefusedError(
            f"{where}: not a table of numbers [layers, experts]: {error}",
            next_step="layers of different size are planned in one call each",
        ) from error
    if loads.ndim != 2 or not loads.size:
        raise RefusedError(f"{where}: shape {list(loads.shape)}, expected [layers, experts]")
    wrong = ~np.isfinite(loads) | (loads < 0)
    if wrong.any():
        layer, expert = (int(i) for i in np.argwhere(wrong)[0])
        raise RefusedError(
            f"{where}: layer {layer} expert {expert} has load {loads[layer, expert]}"
            f" ({int(wrong.sum())} such in all)",
            next_step="loads are token counts: finite and not negative",
        )
    with np.errstate(over="ignore"):
        total_L = loads.sum(axis=1)
    if not np.isfinite(total_L).all():
        layer = int(np.argmin(np.isfinite(total_L)))
        raise RefusedError(f"{where}: the loads of layer {layer} are too large to be added up")
    silent_L = total_L == 0
    if silent_L.any():
        loads = loads.copy()
        loads[silent_L] = 1.0
    return np.ascontiguousarray(loads)
