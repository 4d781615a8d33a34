"""Which devices do the ranks of a model stand on, in which order?

Pure ordering: it never asks whether bytes fit. Rules, in this order, so that a change of width
moves the fewest ranks and a person can foretell the answer:

1. ranks that stay keep their device and their relative order;
2. a lost rank's place is taken by a spare device (so that no other rank is renumbered), or closed
   when there is none;
3. growing fills the nodes the model already stands on before it opens another one;
4. shrinking drops the last ranks.
"""

import re
from collections.abc import Iterable, Sequence

from ..core.plan import DeviceId


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which d2 comes before d10."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def device_key(device: DeviceId) -> tuple[object, ...]:
    """Devices in the order a person would list them: by node, then by device."""
    return natural_key(device.node), natural_key(device.device)


def choose_ranks(
    old: Sequence[DeviceId], available: Iterable[DeviceId], width: int
) -> tuple[DeviceId, ...]:
    """The devices of the new ranks, in rank order.

    `old` are the ranks now (empty for a new model), `available` every live device that the model
    may use, its own ones included. Returns fewer than `width` devices only when there are not more.
    """
    usable = set(available)
    ranks: list[DeviceId | None] = [device if device in usable else None for device in old]
    spares = sorted(usable - set(old), key=device_key)
    _fill_gaps(ranks, spares, width)
    kept = [device for device in ranks if device is not None][:width]
    while len(kept) < width and spares:
        kept.append(_take_nearest(spares, kept))
    return tuple(kept)


def _fill_gaps(ranks: list[DeviceId | None], spares: list[DeviceId], width: int) -> None:
    """Put spares in the places of lost ranks, as long as the new width still has those places."""
    for rank, device in enumerate(ranks[:width]):
        if device is None and spares:
            ranks[rank] = _take_nearest(spares, [other for other in ranks if other is not None])


def _take_nearest(spares: list[DeviceId], used: Sequence[DeviceId]) -> DeviceId:
    """Remove and return the first spare on a node in use, else the first spare."""
    nodes = {device.node for device in used}
    chosen = next((device for device in spares if device.node in nodes), spares[0])
    spares.remove(chosen)
    return chosen
