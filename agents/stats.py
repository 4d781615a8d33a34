"""What does a node report about once a second? Its workers' counters and its devices' pages.

Gathers and publishes; a worker that does not answer in time is left out of that second, so that one
slow worker never makes the node look dead.
"""

import asyncio
import logging

from ..core.clock import Clock
from ..core.errors import DeadlineError, MoectlError
from ..core.records import DeviceUsage, NodeStats, WorkerStats, from_plain
from .memory_book import MemoryBook
from .worker import LocalWorker
from .workers import Workers

log = logging.getLogger("moectl.agent.stats")

ANSWER_S = 0.8  # below the second in which the next question comes


async def gather_stats(node: str, workers: Workers, memory: MemoryBook, clock: Clock) -> NodeStats:
    """One report; what could not be read is left out."""
    alive = [worker for worker in workers if not worker.is_dead]
    counters = await asyncio.gather(*map(_worker_stats, alive))
    return NodeStats(
        node=node,
        at=clock.now(),
        workers=tuple(stats for stats in counters if stats is not None),
        devices=await _devices(memory),
    )


async def _worker_stats(worker: LocalWorker) -> WorkerStats | None:
    try:
        reply = await worker.control.call("stats", ANSWER_S)
        worker.pulse.heard()
        return from_plain(WorkerStats, reply["stats"])
    except (MoectlError, KeyError) as error:
        worker.pulse.missed_one()
        log.debug("worker %s %s: no stats: %s", worker.model, worker.device, error)
        return None


async def _devices(memory: MemoryBook) -> tuple[DeviceUsage, ...]:
    try:
        return await memory.usage()
    except (MoectlError, DeadlineError) as error:
        log.warning("no memory usage: %s", error.message)
        return ()
