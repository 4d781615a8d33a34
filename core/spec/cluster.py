"""Kind `Cluster`: which machines there are, their devices, and how they prove to be alive.

Only what a person declares; what an agent finds out about a device is a record, not a spec.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from ..units import exact_bytes
from .hardware import HardwareSpec
from .types import Address, Bytes, Duration, Name, SpecModel
from .values import Finding, children, quantity, text_of

PAGE_BYTES_MIN = 4096  # the smallest page that any of the three back ends can map

DeviceKind = Literal["cpu", "cuda", "ascend"]


class DeviceSpec(SpecModel):
    """One accelerator; a `cpu` device is a share of this machine's memory and one thread.

    `pretouch` says how many bytes of free pages a `cpu` device gives their memory ahead of need, in
    the background: all of them by default, 0 switches it off.
    """

    id: Name
    kind: DeviceKind = "cpu"
    hbm: Bytes
    page_size: Bytes = 2 * 2**20
    pretouch: Bytes | None = None
    hardware: HardwareSpec | None = None  # for plans: which accelerator this is


class NodeSpec(SpecModel):
    """One machine."""

    name: Name
    address: Address = "127.0.0.1"
    devices: Annotated[tuple[DeviceSpec, ...], Field(min_length=1, max_length=64, strict=False)]


class ClusterSpec(SpecModel):
    """The fleet. `lease_ttl` is how long a silent node counts as alive, in seconds."""

    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1, max_length=10_000, strict=False)]
    lease_ttl: Duration = 5.0

    @property
    def device_count(self) -> int:
        """Devices of all nodes."""
        return sum(len(node.devices) for node in self.nodes)


def check_cluster(spec: object) -> Iterator[Finding]:
    """What the types cannot say: names twice, page sizes that no device can map."""
    nodes = children(spec, "nodes")
    yield from _twice([(("nodes", i, "name"), text_of(n, "name")) for i, n in nodes], "node")
    for i, node in nodes:
        devices = children(node, "devices")
        names = [(("nodes", i, "devices", j, "id"), text_of(d, "id")) for j, d in devices]
        yield from _twice(names, "device of the node")
        for j, device in devices:
            yield from _check_pages(device, ("nodes", i, "devices", j))


def _twice(
    names: Sequence[tuple[tuple[str | int, ...], str | None]], what: str
) -> Iterator[Finding]:
    seen: set[str] = set()
    for path, name in names:
        if name is not None and name in seen:
            yield Finding(path, f"{name!r} names another {what} too", "give each its own name")
        elif name is not None:
            seen.add(name)


def _check_pages(device: object, path: tuple[str | int, ...]) -> Iterator[Finding]:
    default = DeviceSpec.model_fields["page_size"].default
    page, hbm = quantity(device, "pageSize", default), quantity(device, "hbm", None)
    if page is None:
        return
    where = (*path, "pageSize") if isinstance(device, dict) and "pageSize" in device else path
    if page < PAGE_BYTES_MIN or page & (page - 1):
        yield Finding(
            where,
            f"a page of {exact_bytes(page)} cannot be mapped",
            "use a power of two from 4KiB up, such as 16KiB or 2MiB",
        )
    elif hbm is not None and (hbm < page or hbm % page):
        down, up = hbm // page * page, (hbm // page + 1) * page
        nearest = exact_bytes(up) if down == 0 else f"{exact_bytes(down)} or {exact_bytes(up)}"
        reason = f"hbm {exact_bytes(hbm)} is not a whole number of {exact_bytes(page)} pages"
        yield Finding((*path, "hbm"), reason, f"use {nearest}, or another pageSize")
