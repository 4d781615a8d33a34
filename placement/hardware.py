"""What can a device and its links do, by data sheet? Parsed from plain catalogue entries.

Data-sheet figures only: what of them an engine reaches is the business of the fitted constants
(`placement.constants`). Tiers are device < node < rack < fleet; a group of ranks pays for the
widest tier that it spans.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import Mistake, SpecError

TIERS = ("device", "node", "rack", "fleet")
# Dense tensor-core rates double with each halving of the operand; a device without a narrow type
# computes it in the next wider one.
WIDER = {"fp4": "fp8", "fp8": "bf16"}


@dataclass(frozen=True, slots=True)
class Tier:
    """Links inside a group of at most `devices`: bytes/s of one device, one direction, seconds."""

    name: str
    devices: int
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of device. Bytes, bytes/s and multiply-adds counted as two operations a second."""

    name: str
    title: str
    kind: str
    hbm_bytes: int
    bytes_per_s: float
    flops: tuple[tuple[str, float], ...]
    tiers: tuple[Tier, ...]
    price_per_hour: float = 1.0

    def peak(self, dtype: str) -> float:
        """Operations a second with operands of a type, or of the next wider that it has."""
        known = dict(self.flops)
        while dtype not in known and dtype in WIDER:
            dtype = WIDER[dtype]
        return known.get(dtype) or max(known.values())

    def tier_of(self, devices: int) -> Tier:
        """The narrowest tier that holds a group of so many devices."""
        return next((t for t in self.tiers if devices <= t.devices), self.tiers[-1])

    @property
    def node_devices(self) -> int:
        """Devices that share the fast links of one node."""
        return self.tiers[1].devices


def parse_hardware(entry: Mapping[str, Any], where: str = "device") -> Hardware:
    """A catalogue entry as a Hardware; raises SpecError naming every field that is wrong."""
    mistakes: list[Mistake] = []

    def number(table: Any, key: str, path: str) -> float:
        value = table.get(key) if isinstance(table, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            mistakes.append(Mistake(where, 0, path, f"{value!r} is not a number", "write one"))
            return 1.0
        return float(value)

    links = entry.get("links", {})
    tiers = tuple(
        Tier(
            name,
            max(1, int(number(links.get(name), "devices", f"links.{name}.devices"))),
            number(links.get(name), "GBs", f"links.{name}.GBs") * 1e9,
            number(links.get(name), "latencyUs", f"links.{name}.latencyUs") * 1e-6,
        )
        for name in TIERS
    )
    peaks = entry.get("peakTflops") or {}
    hardware = Hardware(
        name=str(entry.get("name", "")),
        title=str(entry.get("title", entry.get("name", ""))),
        kind=str(entry.get("kind", "cuda")),
        hbm_bytes=_bytes(entry.get("hbm"), where, mistakes),
        bytes_per_s=number(entry, "bandwidthTBs", "bandwidthTBs") * 1e12,
        flops=tuple((str(k), number(peaks, k, f"peakTflops.{k}") * 1e12) for k in peaks),
        tiers=tiers,
        price_per_hour=float(entry.get("pricePerHour", 1.0)),
    )
    if not hardware.flops:
        mistakes.append(Mistake(where, 0, "peakTflops", "no rate is given", "write bf16 at least"))
    if mistakes:
        raise SpecError(mistakes)
    return hardware


def override(hardware: Hardware, **fields: Any) -> Hardware:
    """The same device with some figures replaced."""
    return replace(hardware, **fields)


def _bytes(value: Any, where: str, mistakes: list[Mistake]) -> int:
    """Bytes of "80GB" (decimal, as data sheets count), "75GiB" or an integer."""
    units = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    for unit, factor in units.items():
        text = str(value)
        if text.endswith(unit):
            try:
                return int(float(text.removesuffix(unit)) * factor)
            except ValueError:
                break
    mistakes.append(Mistake(where, 0, "hbm", f"{value!r} is not a size", "write such as 80GB"))
    return 1
