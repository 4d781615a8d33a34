"""Which workers run on this node? Started, adopted, stopped; the set and its run files.

Every worker is written down (`run/worker-MODEL-DEVICE.json`) before anything is asked of it, so
that an agent that was killed at any moment leaves nothing that the next one cannot find. Ended by
process id only.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from ..core.errors import MoectlError, WorkerError
from ..core.paths import (
    NodeHome,
    ProcessId,
    end_process,
    is_alive,
    process_id,
    read_run_files,
    remove_run_file,
    write_run_file,
)
from ..core.plan import DeviceId
from ..core.transitions import WorkerState
from .launch.client import ForkServerClient
from .launch.orders import WorkerLaunch
from .worker import LocalWorker

log = logging.getLogger("moectl.agent.workers")

ROLE_PREFIX = "worker-"
FIRST_REPORT_S = 30.0  # a fork takes 60 ms; a machine whose cores are all busy is slower
ADOPT_S = 5.0
FORK_S = 10.0  # a worker is asked to end its step and to fork: tens of milliseconds
STOP_ASK_S = 3.0  # what a worker gets to end by itself
STOP_TERM_S = 2.0  # then SIGTERM, then SIGKILL


class Workers:
    """The workers of one node by (model, device)."""

    def __init__(self, node: str, home: NodeHome, on_change: Callable[[LocalWorker], None]) -> None:
        self._node = node
        self._home = home
        self._on_change = on_change
        self._workers: dict[tuple[str, DeviceId], LocalWorker] = {}

    def __iter__(self) -> Iterator[LocalWorker]:
        return iter(list(self._workers.values()))

    def get(self, model: str, device: DeviceId) -> LocalWorker | None:
        """The worker of a model on a device, dead or alive, or None."""
        return self._workers.get((model, device))

    def of(self, model: str) -> list[LocalWorker]:
        """The workers of a model."""
        return [worker for worker in self if worker.model == model]

    async def spawn(self, fork_server: ForkServerClient, launch: WorkerLaunch) -> LocalWorker:
        """Fork a worker and wait for its first report; raises MoectlError, leaving nothing."""
        device = DeviceId(launch.node, launch.device)
        await self.forget(launch.model, device)
        self._remove_files(launch.model, device)  # of a predecessor that was killed
        pid = await fork_server.spawn(launch)
        process = process_id(pid)
        if process is None:
            raise WorkerError(
                f"the worker on {device} died at once",
                next_step=f"read {launch.log_path}",
            )
        role = _role(launch.model, launch.device)
        write_run_file(self._home.run_dir, role, process, (launch.model, str(launch.instance)))
        worker = self._watch(launch.model, device, launch.instance, process)
        try:
            await self._first_report(worker, FIRST_REPORT_S)
        except BaseException:
            await self.stop(worker)
            raise
        return worker

    async def fork_server(self, log_file: Path) -> ProcessId | None:
        """A fork server that a worker which serves has forked, if any did; see `founding.py`."""
        for worker in self:
            if worker.is_dead or worker.state is not WorkerState.SERVING:
                continue
            try:
                reply = await worker.control.call(
                    "spawn_server", FORK_S, socket=str(self._home.fork_socket), log=str(log_file)
                )
                forked = process_id(int(reply["pid"]))
            except MoectlError as error:
                log.info("no fork server from %s: %s", worker.device, error.message)
                continue
            if forked is not None:
                log.info("fork server pid %d was forked from %s", forked.pid, worker.device)
                return forked
        return None

    async def adopt(self) -> None:
        """Take over the workers that an earlier agent left running; end those that are mute."""
        for run in read_run_files(self._home.run_dir):
            if not run.role.startswith(ROLE_PREFIX) or len(run.argv) != 2:
                continue
            model, instance = run.argv
            device = DeviceId(self._node, run.role.removeprefix(f"{ROLE_PREFIX}{model}."))
            if not is_alive(run.process):
                self._remove_files(model, device)
                continue
            worker = self._watch(model, device, int(instance), run.process)
            try:
                await self._first_report(worker, ADOPT_S)
                log.info("adopted worker %s %s pid %d", model, device, run.process.pid)
            except MoectlError as error:
                log.warning("worker %s %s is mute: %s; ending it", model, device, error.message)
                await self.stop(worker)
                await self.forget(model, device)

    async def stop(self, worker: LocalWorker) -> None:
        """End a worker: asked first, then SIGTERM, then SIGKILL. Returns when it is gone."""
        worker.is_stopping = True
        if not worker.is_dead:
            with contextlib.suppress(MoectlError):
                await worker.control.call("stop", STOP_ASK_S)
                await _wait(worker.died, STOP_ASK_S)
        if not worker.is_dead:
            await asyncio.to_thread(end_process, worker.process, STOP_TERM_S)
            await _wait(worker.died, 1.0)
        self._remove_files(worker.model, worker.device)

    async def forget(self, model: str, device: DeviceId) -> None:
        """Drop what is known of a worker that is gone."""
        worker = self._workers.pop((model, device), None)
        if worker is not None:
            await worker.close()
            self._remove_files(model, device)

    async def stop_all(self) -> None:
        """End every worker at once."""
        await asyncio.gather(*(self.stop(worker) for worker in self))

    async def close(self) -> None:
        """Let go of all of them without touching their processes."""
        for worker in self:
            await worker.close()

    def _watch(
        self, model: str, device: DeviceId, instance: int, process: ProcessId
    ) -> LocalWorker:
        worker = LocalWorker(model, device, instance, process, self._on_change)
        self._workers[model, device] = worker
        worker.watch(self._home.worker_socket(model, device.device))
        return worker

    async def _first_report(self, worker: LocalWorker, deadline_s: float) -> None:
        """Wait for the worker's report or its death."""
        report = asyncio.ensure_future(worker.control.call("status", deadline_s))
        death = asyncio.ensure_future(worker.died.wait())
        try:
            await asyncio.wait({report, death}, return_when=asyncio.FIRST_COMPLETED)
            if worker.is_dead:
                name = self._home.log_file(_role(worker.model, worker.device.device))
                raise WorkerError(
                    f"the worker on {worker.device} died while it started",
                    next_step=f"read {name}",
                )
            worker.take_report(report.result())
        finally:
            for each in (report, death):
                each.cancel()
            await asyncio.gather(report, death, return_exceptions=True)

    def _remove_files(self, model: str, device: DeviceId) -> None:
        remove_run_file(self._home.run_dir, _role(model, device.device))
        self._home.worker_socket(model, device.device).unlink(missing_ok=True)


def _role(model: str, device: str) -> str:
    return f"{ROLE_PREFIX}{model}.{device}"


def worker_log(home: NodeHome, model: str, device: str) -> Path:
    """Where a worker writes its log."""
    return home.log_file(_role(model, device))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
