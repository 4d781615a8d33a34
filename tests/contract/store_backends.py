"""The two stores as tests drive them: a real etcd that can be broken, and memory."""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from etcd_cluster import until_stopped

from moectl.core.store.embedded import EmbeddedEtcd
from moectl.core.store.protocol import (
    EventType,
    Store,
    Watch,
    WatchBatch,
)

LIMIT_S = 20.0  # no wait of these tests comes near it


class EtcdServer:
    """A real etcd that can be killed, paused and started again. Only its process is signalled."""

    def __init__(self, root: Path) -> None:
        ports = free_ports(2)
        self.etcd = EmbeddedEtcd(root / "data", ports[0], ports[1], root / "etcd.log")
        self.start()

    def start(self) -> None:
        self.process = self.etcd.start()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(timeout=10)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        until_stopped(self.process.pid)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def restart(self) -> None:
        self.kill()
        self.start()
        await self.etcd.wait_healthy()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


class Backend:
    """What a test may do besides using the store."""

    def __init__(self, store: Store, server: EtcdServer | None) -> None:
        self.store = store
        self.server = server

    async def interrupt(self) -> None:
        if self.server is not None:
            await self.server.restart()


async def take_until(watch: Watch, done: Callable[[WatchBatch], bool]) -> list[WatchBatch]:
    batches = []
    async with asyncio.timeout(LIMIT_S):
        async for batch in watch:
            batches.append(batch)
            if done(batch):
                return batches
    raise AssertionError(f"the watch ended after {batches}")


async def take(watch: Watch, count: int) -> list[tuple[EventType, str, bytes]]:
    """The next `count` events; fails on a reset."""
    seen: list[tuple[EventType, str, bytes]] = []
    while len(seen) < count:
        (batch,) = await take_until(watch, lambda _: True)
        assert not batch.reset
        seen += [(event.type, event.kv.key, event.kv.value) for event in batch.events]
    return seen


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():  # noqa: ASYNC110 - the store is asked, nothing can tell us
            await asyncio.sleep(0.05)
