"""Which helper processes does a node have, and how are they started or found again?

The HMM owns the pages, the fork server makes workers, the store lets process groups meet. Each is
written down in `run/` and outlives the agent: a new agent adopts what still runs. Nothing is ever
found or ended by name.
"""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ..core.errors import DeadlineError, MoectlError
from ..core.paths import (
    INSTANCE_VARIABLE,
    NodeHome,
    ProcessId,
    end_process,
    is_alive,
    process_id,
    read_run_file,
    remove_run_file,
    write_run_file,
)
from ..memory.hmm.client import HmmClient
from .config import AgentConfig
from .launch import client as launch_client
from .launch.client import ForkServerClient
from .launch.spare import read_spare
from .siblings import Siblings

log = logging.getLogger("moectl.agent.children")

HMM = "hmm"
FORK_SERVER = "forkserver"
STORE = "store"

READY_S = 120.0  # the first import of torch from a cold disk takes half a minute
TAKE_OVER_S, TAKE_OVER_RETRY_S = 5.0, 0.02  # a spare serves within tens of milliseconds
KNOCK_S = 1.0  # an HMM that lives answers in a millisecond
END_S = 3.0  # SIGTERM to SIGKILL; all of them end in milliseconds


#: Given the log, has a fork server forked that will serve at this node's path; None: nobody can.
ForkServer = Callable[[Path], Awaitable[ProcessId | None]]


class Children:
    """The HMM, fork server and store of one node."""

    def __init__(self, config: AgentConfig, home: NodeHome) -> None:
        self.fork_server = ForkServerClient(home.fork_socket)
        self.fork_from_worker: ForkServer | None = None  # given once there may be workers
        self.store_address = ""
        self._config = config
        self._home = home
        self._siblings = Siblings(home, config.siblings)
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._locks = {HMM: asyncio.Lock(), FORK_SERVER: asyncio.Lock()}

    async def ensure_all(self) -> None:
        """Adopt or start all of them; raises MoectlError naming the log of the one that failed."""
        for role in (HMM, FORK_SERVER):
            if self.is_running(role):
                log.info("adopted %s pid %d", role, self._pid(role))
        await asyncio.gather(self.ensure(HMM), self.ensure(FORK_SERVER))
        await self.ensure_store()

    async def ensure(self, role: str) -> bool:
        """Return when the role's process is ready to be used; True when it is a new one."""
        async with self._locks[role]:  # one start at a time; others wait until it is ready
            if self.is_running(role) or (role == HMM and await self._adopt_successor()):
                return False
            if role == HMM:
                await self._start_ready(role)
            elif not await self._adopt_spare():
                await self._new_fork_server()
            return True

    async def _new_fork_server(self) -> None:
        """One that somebody forks who has the imports, else one that imports.

        There is one import at a time on a machine.
        """
        async with self._siblings.turn(READY_S):
            if await self._is_forked(self._siblings.fork):
                return
            if self.fork_from_worker is not None and await self._is_forked(self.fork_from_worker):
                return
            try:
                await self._start_ready(FORK_SERVER)
            except MoectlError:
                # A spare that nobody had written down yet may have taken the place meanwhile.
                if not await self._adopt_serving():
                    raise
            await self.fork_server.close()  # what is open leads to its predecessor

    async def _is_forked(self, fork: ForkServer) -> bool:
        forked = await fork(self._home.log_file(FORK_SERVER))
        if forked is None:
            return False
        # Written down before it serves, as what is started here: nothing may be left unknown.
        write_run_file(self._home.run_dir, FORK_SERVER, forked, self._fork_argv(-1))
        return await self._adopt_soon(forked)

    async def _adopt_successor(self) -> bool:
        """Whether another HMM serves in place of the one we know: an upgrade took over from it."""
        try:
            pid = await asyncio.to_thread(_hmm_pid, self._home.hmm_socket)
        except MoectlError:
            return False
        process = process_id(pid)
        if process is None:
            return False
        write_run_file(self._home.run_dir, HMM, process, self._hmm_argv(-1))
        log.info("adopted hmm pid %d: it took over", pid)
        return True

    async def _adopt_spare(self) -> bool:
        """Whether the spare of a fork server that died serves in its place now."""
        await self.fork_server.close()
        spare = read_spare(self._home.fork_socket)
        return await self._adopt_soon(spare) if spare is not None else False

    async def _adopt_soon(self, coming: ProcessId) -> bool:
        """Whether the fork server that is about to serve at our path does so in time."""
        end_s = time.monotonic() + TAKE_OVER_S
        while is_alive(coming) and time.monotonic() < end_s:
            if await self._adopt_serving():
                return True
            await asyncio.sleep(TAKE_OVER_RETRY_S)
        return False

    async def _adopt_serving(self) -> bool:
        """Whether a fork server answers; it is then ours."""
        try:
            process = process_id(int((await self.fork_server.ping())["pid"]))
        except MoectlError:
            return False
        if process is None:
            return False
        write_run_file(self._home.run_dir, FORK_SERVER, process, self._fork_argv(-1))
        log.info("adopted fork server pid %d: it was forked, not started", process.pid)
        return True

    async def ensure_store(self) -> bool:
        """Adopt or start the store; True when it is a new one."""
        run = read_run_file(self._home.run_dir, STORE)
        if run is not None and is_alive(run.process) and run.argv:
            self.store_address = run.argv[0]
            return False
        host = self._config.node.address
        pid, port = await self.fork_server.spawn_store(host)
        process = process_id(pid)
        if process is None:
            raise MoectlError(f"the store of node {self._config.node.name} died at once")
        self.store_address = f"{host}:{port}"
        write_run_file(self._home.run_dir, STORE, process, (self.store_address,))
        return True

    def process(self, role: str) -> ProcessId | None:
        """The process of a role as written down, alive or not."""
        run = read_run_file(self._home.run_dir, role)
        return None if run is None else run.process

    def pids(self) -> tuple[int, ...]:
        """Of the HMM and the fork server, as far as they run."""
        running = filter(self.is_running, (HMM, FORK_SERVER))
        return tuple(map(self._pid, running))

    def is_running(self, role: str) -> bool:
        """Whether the process of a role is alive."""
        started = self._started.get(role)
        if started is not None:
            started.poll()  # reaps it when it is over
        process = self.process(role)
        return process is not None and is_alive(process)

    async def stop_all(self) -> None:
        """End store, fork server and HMM, in this order."""
        await self.fork_server.close()
        for role in (STORE, FORK_SERVER, HMM):
            process = self.process(role)
            if process is not None:
                await asyncio.to_thread(end_process, process, END_S)
                remove_run_file(self._home.run_dir, role)
            if role == FORK_SERVER:
                await self._end_spare()
            started = self._started.pop(role, None)
            if started is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(started.wait, END_S)

    async def _end_spare(self) -> None:
        """End the spare of a fork server that had no time to do so itself."""
        spare = read_spare(self._home.fork_socket)
        if spare is not None:
            await asyncio.to_thread(end_process, spare, END_S)

    async def _start_ready(self, role: str) -> None:
        reading, writing = os.pipe()
        try:
            argv = self._hmm_argv(writing) if role == HMM else self._fork_argv(writing)
            child = await asyncio.to_thread(self._start, role, argv, writing)
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            await _until_ready(child, pipe.fileno(), self._home.log_file(role))
        log.info("started %s pid %d", role, child.pid)

    def _start(self, role: str, argv: Sequence[str], ready_fd: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self._config.instance:
            environment[INSTANCE_VARIABLE] = self._config.instance
        path = self._home.log_file(role)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as output:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=(ready_fd,),
                start_new_session=True,
            )
        self._started[role] = child
        process = process_id(child.pid)
        if process is not None:
            write_run_file(self._home.run_dir, role, process, argv)
        return child

    def _hmm_argv(self, ready_fd: int) -> list[str]:
        devices = [
            {
                "id": d.id,
                "hbm_bytes": d.hbm_bytes,
                "page_bytes": d.page_bytes,
                "kind": d.kind,
                "pretouch_bytes": d.pretouch_bytes,
            }
            for d in self._config.node.devices
        ]
        options = ["--socket", str(self._home.hmm_socket), "--node", self._config.node.name]
        options += ["--devices", json.dumps(devices), "--ready-fd", str(ready_fd)]
        return [sys.executable, "-P", "-m", "moectl.memory.hmm.server", *options]

    def _fork_argv(self, ready_fd: int) -> list[str]:
        return launch_client.argv(self._home.fork_socket, ready_fd)

    def _pid(self, role: str) -> int:
        process = self.process(role)
        return -1 if process is None else process.pid


def _hmm_pid(socket_path: Path) -> int:
    with HmmClient(socket_path, "agent", KNOCK_S) as client:
        return client.hmm_pid


async def _until_ready(child: subprocess.Popen[bytes], fd: int, log_path: Path) -> None:
    """Wait until the child writes to its pipe; raises MoectlError when it does not."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    end_s = time.monotonic() + READY_S
    try:
        async with asyncio.timeout(READY_S):
            await readable.wait()
    except TimeoutError as error:
        child.kill()
        raise DeadlineError(
            f"process {child.pid} was not ready within {READY_S:g} s", next_step=f"read {log_path}"
        ) from error
    finally:
        loop.remove_reader(fd)
    if os.read(fd, 64):
        return
    # The pipe's other end is closed without a word: it died.
    with contextlib.suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(child.wait, max(0.1, min(5.0, end_s - time.monotonic())))
    raise MoectlError(
        f"process {child.pid} ended with {child.returncode} while it started",
        next_step=f"read {log_path}",
    )
