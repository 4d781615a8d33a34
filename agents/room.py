"""Who gives pages back when a model finds no room? KV of others that has grown above its share.

The HMM remembers whom it refused and for whose pages; here the workers are told. They empty blocks
between two steps and free their pages; the refused worker asks again meanwhile.
"""

import logging

from ..core.errors import MoectlError
from .memory_book import MemoryBook
from .workers import Workers

log = logging.getLogger("moectl.agent.room")

ANSWER_S = 0.8  # it only takes the order


async def make_room(memory: MemoryBook, workers: Workers) -> None:
    """Hand on what is wanted; what fails is wanted again by the next refusal."""
    try:
        wanted = await memory.wanted()
    except MoectlError as error:
        log.debug("the HMM does not say what is wanted: %s", error.message)
        return
    for worker in [each for each in workers if not each.is_dead]:
        pages = wanted.get((worker.model, worker.device.device), 0)
        if not pages:
            continue
        log.info("%s on %s gives %d pages of KV back", worker.model, worker.device, pages)
        try:
            await worker.control.call("give_back", ANSWER_S, pages=pages)
        except MoectlError as error:
            log.warning("worker %s %s gives nothing back: %s", worker.model, worker.device, error)
