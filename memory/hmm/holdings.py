"""What are the things that the HMM holds, and may this owner have so many pages of one?

Plain data and the one rule about it; how it changes is `state.py`'s business. Standard library
only.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import PoolExhaustedError
from ...core.paths import ProcessId
from ..arbiter import Claim, admit, party_of
from ..backend import DeviceHandle
from ..pool import PagePool, Reservation


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
    claims: dict[str, Claim] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Promise:
    """An open reservation and the process that it belongs to."""

    device: str
    reservation: Reservation
    process: ProcessId


def check_share(device: Device, pages: int, owner: str) -> None:
    """Raise PoolExhaustedError when `pages` would eat into what is guaranteed to others."""
    if not device.claims:
        return
    used: dict[str, int] = {}
    for holder, count in device.pool.holders().items():
        party = party_of(holder)
        used[party] = used.get(party, 0) + count
    verdict = admit(party_of(owner), pages, device.pool.free_count, used, device.claims)
    if verdict.admitted:
        return
    told = device.pool.holders()
    told |= {f"guaranteed to {who}": count for who, count in verdict.held_back.items()}
    told |= {f"{who} above its share": count for who, count in verdict.reclaim.items()}
    raise PoolExhaustedError(device.handle.device_id, pages, verdict.available, told)


def facts_of(handle: DeviceHandle) -> dict[str, Any]:
    """What a journal has to know of a device, the identity of its memory included."""
    facts: dict[str, Any] = {
        "hbm_bytes": handle.bytes,
        "page_bytes": handle.page_bytes,
        "page_count": handle.page_count,
        "page_kind": handle.page_kind,
        "kind": handle.kind,
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
