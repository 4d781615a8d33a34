"""How does a node come back into order between transitions? The shell around `sweep`, and the HMM.

Looks once a second: ends workers and frees pages that nobody names, lets workers forfeit what they
prepared for an operation that is over, reports ranks that are missing, and starts the HMM again
when it died: workers serve on and hand their memory back to it. Only a worker whose memory the new
one does not know ends, and is healed.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from ..core.paths import end_process
from ..core.plan import DeviceId
from .children import HMM, Children
from .events import EventLog
from .losses import Losses
from .memory_book import MemoryBook
from .picture import Picture
from .sweep import Finding, Lasting, Leftover, Missing, Scene, Stale, Stray, sweep
from .worker import LocalWorker
from .workers import Workers

log = logging.getLogger("moectl.agent.mend")


class Mender:
    """Order on one node. `end` ends a worker and takes its record away."""

    def __init__(
        self,
        node: str,
        picture: Picture,
        workers: Workers,
        memory: MemoryBook,
        losses: Losses,
        end: Callable[[LocalWorker], Awaitable[None]],
    ) -> None:
        self._node = node
        self._picture = picture
        self._workers = workers
        self._memory = memory
        self._losses = losses
        self._end = end
        self._lasting = Lasting()
        self._memory_lock = asyncio.Lock()

    async def sweep(self, held: Collection[tuple[str, str]] | None) -> None:
        """One look, and the mending of what has been amiss for a while.

        `held` names (model, device) of pages in use; None when the HMM has not said.
        """
        await self._end_silent()
        if held is None or not self._picture.is_complete:
            return
        findings = sweep(self._scene(held))
        for finding in self._lasting.filter(findings, time.monotonic()):
            await self._mend(finding)

    async def keep_memory(self, children: Children, events: EventLog) -> None:
        """Start the HMM again if it died; workers whose memory it cannot know end."""
        async with self._memory_lock:
            if not await children.ensure(HMM):
                return
            await self._memory.close()
            lost = await self._memory.lost()
            told = ", ".join(f"{pages} pages of {owner} on {at}" for at, owner, pages in lost)
            message = f"the HBM manager was started again; lost: {told or 'nothing'}"
            severity = "error" if lost else "warning"
            events.tell(severity, f"node/{self._node}", "HmmLost", message)
            await self._end_as_lost({device for device, _, _ in lost})

    async def _end_as_lost(self, devices: set[str]) -> None:
        ends = [worker for worker in self._workers if worker.device.device in devices]
        for worker in ends:
            worker.message = "its memory is unknown to the node's new HBM manager"
        alive = [worker for worker in ends if not worker.is_dead]
        await asyncio.gather(*(asyncio.to_thread(end_process, w.process, 0.0) for w in alive))

    async def _end_silent(self) -> None:
        """End workers that answer nothing any more; their deaths are losses like others."""
        for worker in self._workers:
            why = "" if worker.is_dead else worker.pulse.verdict(worker.process)
            if why:
                log.warning("ending worker %s %s: %s", worker.model, worker.device, why)
                worker.message = why
                await asyncio.to_thread(end_process, worker.process, 0.0)

    def _scene(self, held: Collection[tuple[str, str]]) -> Scene:
        alive = [worker for worker in self._workers if not worker.is_dead]
        return Scene(
            node=self._node,
            placements=self._picture.placements,
            busy=self._picture.busy_models(),
            alive={(worker.model, worker.device): worker.instance for worker in alive},
            known=frozenset(self._losses.known(self._workers)),
            held=frozenset((model, DeviceId(self._node, device)) for model, device in held),
            prepared={
                (worker.model, worker.device): worker.report.prepared_operation
                for worker in alive
                if worker.report.prepared_operation
            },
        )

    async def _mend(self, finding: Finding) -> None:
        match finding:
            case Stray(model, device):
                log.warning("ending worker %s %s: no placement names it", model, device)
                worker = self._workers.get(model, device)
                if worker is not None:
                    await self._end(worker)
            case Leftover(model, device):
                pages = await self._memory.free_model(model, device.device)
                log.warning("freed %d pages of %s on %s: left over", pages, model, device)
            case Stale(model, device, operation_id):
                log.warning("worker %s %s forfeits %s: it is over", model, device, operation_id)
                worker = self._workers.get(model, device)
                if worker is not None:
                    await worker.control.call("forfeit", operation_id=operation_id)
            case Missing():
                self._losses.report_missing(finding, self._workers)
