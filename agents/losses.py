"""Who is told that a worker died? The fleet by a record, people by an event, its peers at once.

Workers of one epoch wait for each other in every step; a dead one would hold the others until their
deadline. So the agent that sees a death tells its own workers, and every other agent does the same
as soon as the LOST record reaches it. Each death is told once.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from ..core.errors import MoectlError
from ..core.plan import DeviceId
from ..core.records import Keys, WorkerRecord, to_json
from ..core.transitions import WorkerState
from .events import EventLog
from .picture import Picture
from .publish import Publisher
from .sweep import Missing
from .worker import LocalWorker
from .workers import Workers

log = logging.getLogger("moectl.agent.losses")

TOLD_MAX = 10_000  # deaths of months; forgetting them repeats a harmless word

Rank = tuple[str, DeviceId, int]  # model, device, instance: one life of a rank


class Losses:
    """Deaths of workers, of this node and of others."""

    def __init__(
        self, node: str, keys: Keys, picture: Picture, publisher: Publisher, events: EventLog
    ) -> None:
        self._node = node
        self._keys = keys
        self._picture = picture
        self._publisher = publisher
        self._events = events
        self._told: set[Rank] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, record: WorkerRecord, workers: Workers) -> None:
        """A worker of this node is lost: its record says so."""
        key = self._keys.worker(record.model, record.device)
        self._publisher.put(key, to_json(record))
        if (record.model, record.device, record.instance) not in self._told:
            subject = f"worker/{record.model}/{record.device}"
            message = f"instance {record.instance} in epoch {record.epoch}: {record.message}"
            self._events.tell("error", subject, "WorkerLost", message)
        self._tell_peers(record, workers)

    def report_missing(self, missing: Missing, workers: Workers) -> None:
        """A rank that a placement names does not run here, and nobody saw it die."""
        record = WorkerRecord(
            model=missing.model,
            rank=missing.rank,
            device=missing.device,
            instance=missing.instance,
            epoch=missing.epoch,
            state=WorkerState.LOST,
            address="",
            pid=0,
            message="no such worker runs on its node",
        )
        self.report(record, workers)

    def hear(self, workers: Workers) -> None:
        """Tell this node's workers of deaths that other agents reported."""
        for record in list(self._picture.workers.values()):
            if record.state is WorkerState.LOST and record.device.node != self._node:
                self._tell_peers(record, workers)

    def known(self, workers: Workers) -> Iterator[Rank]:
        """Ranks of this node whose death is reported."""
        for worker in workers:
            if worker.is_dead:
                yield worker.model, worker.device, worker.instance
        for record in self._picture.workers.values():
            if record.state is WorkerState.LOST and record.device.node == self._node:
                yield record.model, record.device, record.instance

    async def close(self) -> None:
        """Stop telling."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tell_peers(self, lost: WorkerRecord, workers: Workers) -> None:
        rank = (lost.model, lost.device, lost.instance)
        if rank in self._told:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add(rank)
        for epoch in sorted({lost.epoch} | self._epochs_joining(*rank)):
            for worker in workers.of(lost.model):
                if worker.device != lost.device and not worker.is_dead:
                    self._in_background(_tell_peer_lost(worker, epoch))

    def _epochs_joining(self, model: str, device: DeviceId, instance: int) -> set[int]:
        """Epochs in preparation that the dead worker was to be a part of."""
        return {
            transition.new.epoch
            for transition in self._picture.transitions.values()
            if transition.model == model
            and (device, instance)
            in zip(transition.new.ranks, transition.new.instances, strict=True)
        }

    def _in_background(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _tell_peer_lost(worker: LocalWorker, epoch: int) -> None:
    try:
        await worker.control.call("peer_lost", epoch=epoch)
    except MoectlError as error:
        if not worker.is_dead:
            log.warning("worker %s %s: %s", worker.model, worker.device, error.message)
