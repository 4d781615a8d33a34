"""What are the things that the HMM holds?

Plain data; how it changes is `state.py`'s business, who may have how much `budget.py`'s. Standard
library only.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...core.paths import ProcessId
from ..arbiter import Claim
from ..backend import DeviceHandle
from ..pool import PagePool, Reservation


@runtime_checkable
class KeepsPages(Protocol):
    """An owner whose pages outlive the HMM elsewhere; a new `identity` means that all are new."""

    identity: str

    def known(self, device_id: str) -> DeviceHandle | None:
        """A device as a predecessor created it, or None."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device as the command line declares it."""

    device_id: str
    hbm_bytes: int
    page_bytes: int
    kind: str = "cpu"
    pretouch_bytes: int = 0  # free pages kept touched ahead: `pretouch.ALL` for all of them


@dataclass(slots=True)
class Device:
    """A device in force: its memory, its pool, and who may count on what."""

    handle: DeviceHandle
    pool: PagePool
    claims: dict[str, Claim] = field(default_factory=dict)  # kept until they are replaced
    wanted: dict[str, int] = field(default_factory=dict)  # party -> pages that another lacks
    holder: str = ""  # identity of the process that owns its pages; "" for one descriptor
    asked: dict[int, dict[str, Claim]] = field(default_factory=dict)  # by connection


@dataclass(frozen=True, slots=True)
class Promise:
    """An open reservation and the process that it belongs to."""

    device: str
    reservation: Reservation
    process: ProcessId


def facts_of(device: Device) -> dict[str, Any]:
    """What a journal has to know of a device, the identity of its memory included."""
    handle = device.handle
    facts: dict[str, Any] = {
        "hbm_bytes": handle.bytes,
        "page_bytes": handle.page_bytes,
        "page_count": handle.page_count,
        "page_kind": handle.page_kind,
        "kind": handle.kind,
        "holder": device.holder,
    }
    if handle.fd >= 0:
        status = os.fstat(handle.fd)
        facts |= {"dev": status.st_dev, "ino": status.st_ino, "boot": boot_id()}
    return facts


def boot_id() -> str:
    """This boot of the machine: memory of an earlier one is gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
