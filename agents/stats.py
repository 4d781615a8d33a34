"""What does a node report about once a second? Its workers' counters and its devices' pages.

A worker that does not answer in time is left out of that second, so that one slow worker never
makes the node look dead. With its counters it says how it is: one question a second to a process
that has better things to do.
"""

import asyncio
import logging

from ..core.clock import Clock
from ..core.errors import MoectlError
from ..core.records import DeviceUsage, NodeStats, WorkerStats, from_plain
from .worker import LocalWorker
from .workers import Workers

log = logging.getLogger("moectl.agent.stats")

ANSWER_S = 0.8  # below the second in which the next question comes


async def gather_stats(
    node: str, workers: Workers, devices: tuple[DeviceUsage, ...], clock: Clock
) -> NodeStats:
    """One report; what could not be read is left out."""
    alive = [worker for worker in workers if not worker.is_dead]
    counters = await asyncio.gather(*map(_worker_stats, alive))
    return NodeStats(
        node=node,
        at=clock.now(),
        workers=tuple(stats for stats in counters if stats is not None),
        devices=devices,
    )


async def _worker_stats(worker: LocalWorker) -> WorkerStats | None:
    try:
        reply = await worker.control.call("stats", ANSWER_S)
        worker.pulse.heard()
        if "status" in reply:  # a worker that was started by an agent of before does not say
            worker.take_report(reply["status"])
        return from_plain(WorkerStats, reply["stats"])
    except (MoectlError, KeyError) as error:
        worker.pulse.missed_one()
        log.debug("worker %s %s: no stats: %s", worker.model, worker.device, error)
        return None
