"""Who gives pages back when a model finds no room? KV of others that has grown above its share.

The HMM remembers whom it refused and for whose pages; here the workers are told. They empty blocks
between two steps and free their pages; the refused worker asks again meanwhile.
"""

import logging
from collections.abc import Mapping

from ..core.errors import MoectlError
from .workers import Workers

log = logging.getLogger("moectl.agent.room")

ANSWER_S = 0.8  # it only takes the order


async def make_room(wanted: Mapping[tuple[str, str], int], workers: Workers) -> None:
    """Hand on what is wanted of (model, device); what fails is wanted again by the next refusal."""
    for worker in [each for each in workers if not each.is_dead]:
        pages = wanted.get((worker.model, worker.device.device), 0)
        if not pages:
            continue
        log.info("%s on %s gives %d pages of KV back", worker.model, worker.device, pages)
        try:
            await worker.control.call("give_back", ANSWER_S, pages=pages)
        except MoectlError as error:
            log.warning("worker %s %s gives nothing back: %s", worker.model, worker.device, error)
