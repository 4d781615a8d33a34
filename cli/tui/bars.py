"""What fills the HBM of each device? Bars as data: named segments in whole screen cells. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..fleet_view import DeviceView, FleetView

PARTS = ("experts", "shared", "kv", "adapters", "reserved")


@dataclass(frozen=True, slots=True)
class Bar:
    """One device; `pages` in the order of PARTS, then what is free."""

    device: str
    kind: str
    page_bytes: int
    total: int
    pages: tuple[int, ...]
    free: int
    is_known: bool

    @property
    def used_share(self) -> float:
        """Between 0 and 1."""
        return 1.0 - self.free / self.total if self.total else 0.0


def bars(fleet: FleetView) -> tuple[Bar, ...]:
    """One bar for each device, in the order of nodes."""
    return tuple(_bar(device) for node in fleet.nodes for device in node.devices)


def _bar(device: DeviceView) -> Bar:
    usage = device.usage
    if usage is None:
        total = device.hbm_bytes // device.page_bytes
        pages = (0,) * len(PARTS)
        return Bar(device.name, device.kind, device.page_bytes, total, pages, total, False)
    known = tuple(usage.used.get(part, 0) for part in PARTS[:-1])
    return Bar(
        device.name,
        device.kind,
        usage.page_bytes,
        usage.total,
        (*known, usage.reserved),
        usage.free,
        True,
    )


def cells_of(amounts: Sequence[int], width: int) -> tuple[int, ...]:
    """Share `width` cells out in proportion, so that they add up exactly.

    Whatever is there at all gets a cell while there are any: a small part must not vanish.
    """
    total = sum(amounts)
    if total <= 0 or width <= 0:
        return (0,) * len(amounts)
    exact = [amount * width / total for amount in amounts]
    cells = [
        max(int(share), 1 if amount else 0) for share, amount in zip(exact, amounts, strict=True)
    ]
    while sum(cells) < width:
        index = max(range(len(cells)), key=lambda i: (exact[i] - cells[i], -i))
        cells[index] += 1
    while sum(cells) > width:
        index = max(range(len(cells)), key=lambda i: (cells[i] > 1, cells[i] - exact[i], -i))
        cells[index] -= 1
    return tuple(cells)
