"""How small can the largest load of a device possibly be?

Not smaller than the mean. And with a largest load of X every copy carries at most X, so an expert
with work w needs ceil(w / X) copies; all of them together must fit the slots. The least X that
passes both is a lower bound for every placement and every split, equal or not. It is not always
reached: it does not know that slots are on devices.

`_greedy.h` is the same in C.
"""

import math
from collections.abc import Sequence

from . import native
from .layout import Floats, Layout


def bound_layer(load_E: Sequence[float], layout: Layout) -> float:
    """The bound of one layer, in the unit of the loads; rounded down, never up."""
    low = 0.0
    for load in load_E:
        low += load / layout.devices
    if low <= 0 or _copies_needed(load_E, low) <= layout.slots:
        return low
    high = max(low, *load_E)
    for _ in range(60):
        if high - low <= 1e-12 * high:
            break
        middle = (low + high) / 2
        if _copies_needed(load_E, middle) <= layout.slots:
            high = middle
        else:
            low = middle
    return low


def _copies_needed(load_E: Sequence[float], limit: float) -> int:
    return sum(max(1, math.ceil(load / limit - 1e-9)) for load in load_E)


def bounds(loads_LE: Floats, layout: Layout) -> list[float]:
    """[L] the bound of every layer."""
    if native.extension is not None:
        sizes = layout.slots, layout.devices
        return [float(native.extension.bound(load_E, *sizes)) for load_E in loads_LE]
    return [bound_layer(load_E.tolist(), layout) for load_E in loads_LE]
