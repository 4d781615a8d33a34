"""Why is there no placement, and what is the nearest change that would fit?

Builds `Infeasible` values for people: every reason names the device, what is needed and what is
there. It never searches layouts; the nearest width comes from the memory model alone.
"""

from collections.abc import Mapping, Sequence

from ..core.plan import DeviceId, Infeasible
from ..core.units import format_bytes
from .devices import choose_ranks
from .memory_model import Demand, DeviceMemory, fits_in_rest, slots_that_fit


def too_few_devices(width: int, usable: Sequence[DeviceId]) -> Infeasible:
    """A width below 1 or above the live devices."""
    count = len(usable)
    if width < 1:
        return Infeasible((f"{width} devices asked for, at least 1 is needed",), "1 device")
    nearest = f"{count} devices" if count != 1 else "1 device"
    return Infeasible((f"{width} devices asked for, {count} available",), nearest if count else "")


def over_hbm(
    demand: Demand,
    width: int,
    memories: Mapping[DeviceId, DeviceMemory],
    excess: Mapping[DeviceId, int],
) -> Infeasible:
    """The peak on some devices is above what they have left."""
    reasons = tuple(
        f"device {device}: {needed} bytes ({format_bytes(needed)}) needed at the peak, "
        f"{max(0, memories[device].free_bytes)} bytes available "
        f"({max(0, slots_that_fit(demand, memories[device]))} expert copies fit)"
        for device, needed in sorted(excess.items())
    )
    nearest = nearest_width(demand, tuple(memories.values()), width)
    return Infeasible(reasons, f"{nearest} devices" if nearest else "")


def nearest_width(demand: Demand, memories: Sequence[DeviceMemory], width: int) -> int | None:
    """The width closest to `width` at which an even spread fits at rest; wider wins a tie."""
    by_device = {memory.device: memory for memory in memories}
    others = sorted(
        (w for w in range(1, len(by_device) + 1) if w != width),
        key=lambda w: (abs(w - width), -w),
    )
    for candidate in others:
        ranks = choose_ranks((), by_device, candidate)
        if fits_in_rest(demand, tuple(by_device[device] for device in ranks)):
            return candidate
    return None
