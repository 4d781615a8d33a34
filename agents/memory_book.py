"""How does the agent ask the HMM? Usage for the fleet's eyes, and freeing what a model left.

A thin asynchronous face of `HmmClient`, whose calls block: one at a time in a thread, on a
connection that is made again after a break. The agent never maps a page.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import DeadlineError, MemoryPoolError
from ..core.records import DeviceUsage
from ..memory.hmm.client import HmmClient
from ..memory.hmm.settled import settled_client
from ..memory.layout import device_of_layout

T = TypeVar("T")
CLIENT_NAME = "agent"


@dataclass(frozen=True, slots=True)
class PageTable:
    """One device's pages: runs (first, count) by owner, free ones under "", and its layouts.

    `usage` is the HMM's own word about the device as a whole.
    """

    usage: dict[str, Any]
    owners: dict[str, list[tuple[int, int]]]
    layouts: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class MemoryLook:
    """All devices of a node at one moment; asked for at once, because every question costs."""

    devices: tuple[DeviceUsage, ...]  # pages by kind of holder
    holders: frozenset[tuple[str, str]]  # (model, device id) with committed pages
    wanted: dict[tuple[str, str], int]  # (model, device id) -> pages of KV to give back


class MemoryBook:
    """The HMM of this node as the agent uses it."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._client: HmmClient | None = None
        self._lock = asyncio.Lock()

    async def look(self) -> MemoryLook:
        """What the devices hold; raises MemoryPoolError or DeadlineError.

        Pages to give back are told once: they are those that a model was refused since.
        """

        def read(client: HmmClient) -> MemoryLook:
            usage = client.usage()
            wanted = {str(each["device"]): client.wanted(str(each["device"])) for each in usage}
            return MemoryLook(
                devices=tuple(map(_device_usage, usage)),
                holders=_holders(usage),
                wanted={
                    (party.partition("/")[0], device): pages
                    for device, parties in wanted.items()
                    for party, pages in parties.items()
                    if party.endswith("/kv")
                },
            )

        return await self._call(read)

    async def page_kind(self) -> str:
        """Which pages are in force."""
        usage = await self._call(lambda client: client.usage())
        return str(usage[0].get("page_kind", "4KiB")) if usage else "4KiB"

    async def page_tables(self) -> "dict[str, PageTable]":
        """Who holds which pages of each device, and the layouts that say what is on them."""

        def read(client: HmmClient) -> dict[str, PageTable]:
            layouts = {name: client.get_layout(name) or {} for name in client.layouts()}
            return {
                str(used["device"]): PageTable(
                    usage=used,
                    owners=client.owners(str(used["device"])),
                    layouts={
                        name: plain
                        for name, plain in layouts.items()
                        if device_of_layout(name) == used["device"]
                        and not name.startswith("shared:")
                    },
                )
                for used in client.usage()
            }

        return await self._call(read)

    async def lost(self) -> list[tuple[str, str, int]]:
        """(device, owner, pages) that a new HMM could not save from its predecessor."""
        told = await self._call(lambda client: client.recovery()["lost"])
        return [(str(each["device"]), str(each["owner"]), int(each["pages"])) for each in told]

    async def free_model(self, model: str, device: str) -> int:
        """Free every page and layout of a model on a device; returns the number of pages."""

        def free(client: HmmClient) -> int:
            (usage,) = [each for each in client.usage() if each["device"] == device]
            owners = [owner for owner in usage["used"] if owner.startswith(f"{model}/")]
            names = [name for name in client.layouts() if _is_layout_of(name, model, device)]
            count = 0
            for owner in owners:
                pages = client.pages_of(device, owner)
                client.free(device, pages, owner)
                count += len(pages)
            for name in names:
                client.drop_layout(name)
            client.set_claims(device, {}, model)
            return count

        return await self._call(free)

    async def close(self) -> None:
        """Drop the connection."""
        async with self._lock:
            self._drop()

    async def _call(self, work: Callable[[HmmClient], T]) -> T:
        async with self._lock:
            try:
                return await asyncio.to_thread(self._work, work)
            except (MemoryPoolError, DeadlineError):
                self._drop()
                raise

    def _work(self, work: Callable[[HmmClient], T]) -> T:
        if self._client is None:
            self._client = settled_client(self._path, CLIENT_NAME)
        return work(self._client)

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(OSError):
                client.close()


def _device_usage(raw: dict[str, Any]) -> DeviceUsage:
    """Owners "<model>/<kind>" summed by kind."""
    used: dict[str, int] = {}
    for owner, pages in raw["used"].items():
        kind = str(owner).rpartition("/")[2]
        used[kind] = used.get(kind, 0) + int(pages)
    return DeviceUsage(
        device=str(raw["device"]),
        page_bytes=int(raw["page_bytes"]),
        total=int(raw["total"]),
        free=int(raw["free"]),
        reserved=int(raw["reserved"]),
        used=used,
        touched=int(raw.get("touched", -1)),
        pretouch=str(raw.get("pretouch", "")),
    )


def _holders(usage: list[dict[str, Any]]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (owner.partition("/")[0], str(device["device"]))
        for device in usage
        for owner, pages in device["used"].items()
        if pages
    )


def _is_layout_of(name: str, model: str, device: str) -> bool:
    """Layout names are "<kind>:<model>:<device>" and maybe ":<epoch>"."""
    parts = name.split(":")
    return len(parts) >= 3 and parts[1] == model and parts[2] == device
