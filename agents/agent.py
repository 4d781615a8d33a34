"""How is an agent put together and run? `python -m moectl.agents.agent --config FILE`.

Composition only. Started anew after a kill it adopts what still runs; on SIGTERM it ends its
workers, then store, fork server and HMM, gives its lease back and leaves nothing behind.
"""

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ..core import heap
from ..core.clock import Clock, SystemClock
from ..core.errors import ConflictError, MoectlError
from ..core.paths import NodeHome
from ..core.priority import GENTLE_NICE, SessionPriority
from ..core.records import Keys, NodeRecord, to_json
from ..core.store.protocol import Store
from .children import FORK_SERVER, Children
from .config import AgentConfig, load_agent_config
from .events import EventLog
from .follow import follow
from .memory_book import MemoryLook
from .node import Node
from .page_maps import PageMaps
from .picture import Picture
from .probe import memory_warning, probe
from .publish import Publisher
from .room import make_room
from .stats import gather_stats
from .warm import Warmer

log = logging.getLogger("moectl.agent")

TICK_S = 1.0  # stats, reports of workers, sweeping


class Agent:
    """One node's agent: parts, life and end."""

    def __init__(self, config: AgentConfig, store: Store, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self._keys = Keys(config.cluster)
        self._home = NodeHome(Path(config.node_dir)).create()
        self._picture = Picture(self._keys)
        self._publisher = Publisher(store, config.lease_ttl_s)
        self._events = EventLog(store, self._keys, f"agent.{config.node.name}", clock)
        self._children = Children(config, self._home)
        self._started_at = clock.now()
        self._page_maps = PageMaps(config.node.name, self._keys, self._publisher)
        self._warmer = Warmer(self._picture, self._children.fork_server)
        self.node = Node(
            config, self._home, self._picture, self._children, self._publisher, self._events
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then end everything; raises MoectlError when it cannot start."""
        devices = probe(self._config.node.devices)
        warning = memory_warning(devices)
        tasks = [
            asyncio.create_task(self._publisher.run()),
            asyncio.create_task(self._events.run()),
        ]
        try:
            await self._children.ensure_all()
            await self.node.workers.adopt()
            await self._register()
            if warning:
                subject = f"node/{self._config.node.name}"
                self._events.tell("warning", subject, "MemoryOvercommitted", warning)
            tasks += [asyncio.create_task(self._follow(p)) for p in self._picture.prefixes]
            parts = (self.node.run(), self._tick(), self._warmer.run())
            tasks += [asyncio.create_task(part) for part in parts]
            log.info("node %s is up", self._config.node.name)
            await stop.wait()
        finally:
            await self._end(tasks)

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        log.info("node %s ends", self._config.node.name)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.node.workers.stop_all()
        await self.node.close()
        await self._children.stop_all()
        await self._publisher.close()
        log.info("node %s ended", self._config.node.name)

    async def _follow(self, prefix: str) -> None:
        def apply(key: str, value: bytes | None) -> None:
            self._picture.apply(prefix, key, value)

        await follow(self._store, prefix, apply, on_batch=lambda: self._picture.settle(prefix))

    async def _register(self) -> None:
        """Say that the node is there, with what it has."""
        record = NodeRecord(
            name=self._config.node.name,
            address=self._config.node.address,
            devices=self._config.node.devices,
            store_address=self._children.store_address,
            agent_pid=os.getpid(),
            started_at=self._started_at,
            page_kind=await self.node.memory.page_kind(),
        )
        self._publisher.put(self._keys.node(record.name), to_json(record))

    async def _tick(self) -> None:
        """Housekeeping about once a second; a failure is logged and tried again."""
        while True:
            began_s = time.monotonic()
            try:
                await self._keep_house()
            except MoectlError as error:
                log.warning("housekeeping: %s", error)
            except Exception:  # the loop's top: a bug here must not stop the node
                log.exception("housekeeping failed by a bug")
            await asyncio.sleep(max(0.1, TICK_S - (time.monotonic() - began_s)))

    async def _keep_house(self) -> None:
        await self._keep_children()
        look = await self._look_at_memory()
        name, workers = self._config.node.name, self.node.workers
        stats = await gather_stats(name, workers, look.devices if look else (), self._clock)
        self._publisher.put(self._keys.stats_of(name), to_json(stats))
        await self._page_maps.tell(self.node.memory, workers, self._picture.busy_models())
        await make_room(look.wanted if look else {}, workers)
        await self.node.sweep(look.holders if look else None)

    async def _look_at_memory(self) -> MemoryLook | None:
        try:
            return await self.node.memory.look()
        except MoectlError as error:
            log.warning("no memory usage: %s", error.message)
            return None

    async def _keep_children(self) -> None:
        """Start again what died."""
        subject = f"node/{self._config.node.name}"
        await self.node.keep_memory()
        if await self._children.ensure(FORK_SERVER):
            self._events.tell("warning", subject, "ForkServerLost", "it was started again")
            self._warmer.forget()
        if await self._children.ensure_store():
            self._events.tell("warning", subject, "StoreLost", "the rendezvous store is new")
            await self._register()


@contextlib.contextmanager
def only_agent(home: NodeHome) -> Iterator[None]:
    """Hold the node's directory; raises ConflictError when another agent runs it."""
    path = home.create().root / "agent.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConflictError(
                f"another agent runs the node in {home.root}", next_step="end that one first"
            ) from error
        yield


async def serve(config: AgentConfig) -> None:
    """Run an agent against etcd until SIGTERM or SIGINT."""
    from ..core.store.etcd import EtcdStore  # grpc only where it is used

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = EtcdStore(list(config.etcd), security=config.etcd_security)
    try:
        await Agent(config, store, SystemClock()).run(stop)
    finally:
        await store.close()


def main(argv: list[str] | None = None) -> int:
    """Run an agent; returns the exit code."""
    parser = argparse.ArgumentParser(description="The agent of one node of a moectl fleet")
    parser.add_argument("--config", type=Path, required=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        config = load_agent_config(parser.parse_args(argv).config)
        SessionPriority().lower(GENTLE_NICE)  # its node's cores are there to serve
        heap.settle()
        with only_agent(NodeHome(Path(config.node_dir))):
            asyncio.run(serve(config))
    except MoectlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
