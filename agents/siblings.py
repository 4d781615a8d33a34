"""Who has imported torch on this machine already? A fork server beside ours can fork ours.

The import of torch and transformers takes seconds of CPU time, and the nodes of an embedded fleet
share one machine: whoever comes first imports, under a lock in the first node's folder; the others
wait for it and are forked from it within milliseconds, templates and all. So a scale that needs the
fork server of one node never competes with the imports of the others. A node that has its machine
for itself has no siblings, and imports.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from ..core.errors import MoectlError
from ..core.paths import NodeHome, ProcessId, process_id
from .launch.client import ForkServerClient

log = logging.getLogger("moectl.agent.siblings")

#: A fork takes tens of milliseconds; a sibling that is stopped must not hold us up for long.
ASK_S = 2.0
RETRY_S = 0.05
LOCK = "import.lock"


class Siblings:
    """The other nodes of this user, instance and machine; their folders lie beside ours."""

    def __init__(self, home: NodeHome, nodes: tuple[str, ...]) -> None:
        self._home = home
        self._homes = [NodeHome(home.root.with_name(node)) for node in nodes]
        self._first = min([home, *self._homes], key=lambda each: each.root)

    @contextlib.asynccontextmanager
    async def turn(self, deadline_s: float) -> AsyncIterator[None]:
        """Hold the lock of who imports; without it when the deadline passes: late beats never."""
        if not self._homes:
            yield
            return
        path = self._first.create().root / LOCK
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await _locked(lock, time.monotonic() + deadline_s)
            yield
        finally:
            os.close(lock)

    async def fork(self, log_file: Path) -> ProcessId | None:
        """The process that a sibling's fork server forked to serve at our path, if any did."""
        for home in self._homes:
            if not home.fork_socket.exists():
                continue
            asked = ForkServerClient(home.fork_socket, ASK_S)
            try:
                pid = await asked.spawn_server(self._home.fork_socket, log_file)
            except MoectlError as error:
                log.info("no fork server from %s: %s", home.root.name, error.message)
                continue
            finally:
                await asked.close()
            log.info("fork server pid %d was forked from that of %s", pid, home.root.name)
            return process_id(pid)
        return None


async def _locked(lock: int, end_s: float) -> None:
    while time.monotonic() < end_s:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        await asyncio.sleep(RETRY_S)
    log.warning("another node's import has taken very long; importing beside it")
