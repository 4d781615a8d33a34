"""What does an agent know of one worker, and how does it notice its death?

A `LocalWorker` joins the process (known by id and start time, watched by a pidfd, so death is seen
within a millisecond whoever its parent is), its control connection and its last report. It decides
nothing: `workers.py` keeps the set of them and `executor.py` says what to do.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import MoectlError, ProtocolError
from ..core.paths import ProcessId, is_alive
from ..core.plan import DeviceId
from ..core.records import WorkerRecord
from ..core.transitions import WorkerState
from .actions import Outcome
from .changes import Changes
from .control import Control
from .executor import SeenWorker
from .pulse import Pulse

log = logging.getLogger("moectl.agent.worker")


@dataclass(frozen=True, slots=True)
class Report:
    """A worker's own words about itself."""

    state: WorkerState = WorkerState.STARTING
    epoch: int = -1
    rank: int = -1
    address: str = ""
    prepared_operation: str = ""

    @classmethod
    def from_reply(cls, reply: dict[str, Any]) -> "Report":
        """From the reply to "status"; raises ProtocolError on nonsense."""
        try:
            return cls(
                state=WorkerState(reply["state"]),
                epoch=int(reply["epoch"]),
                rank=int(reply["rank"]),
                address=str(reply["data_address"] or ""),
                prepared_operation=str(reply.get("prepared_operation") or ""),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"a worker's status is malformed: {error!r}") from error


@dataclass(slots=True)
class LocalWorker:
    """One worker process of this node; `on_change` is called after every change."""

    model: str
    device: DeviceId
    instance: int
    process: ProcessId
    on_change: Callable[["LocalWorker"], None]
    report: Report = field(default_factory=Report)
    message: str = ""
    is_stopping: bool = False  # it was asked to end: its death is no loss
    is_dead: bool = False
    died: asyncio.Event = field(default_factory=asyncio.Event)
    changes: Changes = field(default_factory=Changes)
    pulse: Pulse = field(default_factory=Pulse)
    control: Control = field(init=False)
    _events: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    _pidfd: int = -1
    _refreshing: asyncio.Task[None] | None = None
    _closing: asyncio.Task[None] | None = None  # held, so that it is not collected half way

    @property
    def state(self) -> WorkerState:
        """What the fleet is told about it."""
        if self.is_dead:
            return WorkerState.STOPPED if self.is_stopping else WorkerState.LOST
        return self.report.state

    def seen(self) -> SeenWorker:
        """What decisions see of it."""
        report = self.report
        return SeenWorker(
            self.device,
            self.instance,
            self.state,
            report.epoch,
            report.prepared_operation,
            self.message,
        )

    def record(self) -> WorkerRecord:
        """What the fleet sees of it."""
        report = self.report
        return WorkerRecord(
            model=self.model,
            rank=report.rank,
            device=self.device,
            instance=self.instance,
            epoch=report.epoch,
            state=self.state,
            address=report.address,
            pid=self.process.pid,
            message=self.message,
        )

    def watch(self, control_socket: Path) -> None:
        """Begin: connect, and notice death."""
        self.control = Control(control_socket, self._on_event)
        self.control.start()
        try:
            self._pidfd = os.pidfd_open(self.process.pid)
        except ProcessLookupError:
            self._on_death()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_death)
        if not is_alive(self.process):  # the number was given to somebody else meanwhile
            self._on_death()

    async def refresh(self) -> None:
        """Ask for its report; raises MoectlError when it does not give one."""
        self.take_report(await self.control.call("status"))

    def take_report(self, reply: dict[str, Any]) -> None:
        """Take its words about itself; raises ProtocolError on nonsense."""
        report = Report.from_reply(reply)
        if report != self.report and not self.is_dead:
            self.report = report
            self._tell_change()

    def refresh_soon(self) -> None:
        """Ask for its report in the background; at most one question is open."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_quietly())

    def take_event(self, event: str, operation_id: str) -> Outcome | None:
        """How the worker said that an operation ended, if it did."""
        return self._events.get((event, operation_id))

    async def close(self) -> None:
        """Stop watching it; the process is not touched."""
        self._stop_watching()
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self.control.close()

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except MoectlError as error:
            if not self.is_dead:
                log.warning("worker %s %s: %s", self.model, self.device, error.message)

    def _on_event(self, message: dict[str, Any]) -> None:
        event, operation_id = str(message["event"]), str(message.get("operation_id", ""))
        figures = message.get("figures") or {}
        numbers = {str(k): float(v) for k, v in figures.items() if isinstance(v, (int, float))}
        ok = message.get("ok", True) is True
        outcome = Outcome(ok, str(message.get("error") or ""), numbers)
        log.info("worker %s %s: %s %s", self.model, self.device, event, operation_id)
        self._events[event, operation_id] = outcome
        while len(self._events) > 64:  # some tens of operations back: nobody asks any more
            del self._events[next(iter(self._events))]
        self.refresh_soon()
        self._tell_change()

    def _on_death(self) -> None:
        if self.is_dead:
            return
        self._stop_watching()
        self.is_dead = True
        if not self.is_stopping:
            self.message = self.message or f"process {self.process.pid} died"
        self.died.set()
        self._closing = asyncio.get_running_loop().create_task(self.control.close())
        self._tell_change()

    def _tell_change(self) -> None:
        self.changes.notify()
        self.on_change(self)

    def _stop_watching(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
