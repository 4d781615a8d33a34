"""How is the first worker of a model on a node as fast as the next? Its template is made ahead.

Every declared model is prepared in the fork server as soon as it is known, also on nodes that do
not serve it yet: a scale to this node then forks in milliseconds. Best effort: a spawn that comes
first makes the template itself.
"""

import asyncio
import logging

from ..core.errors import MoectlError
from .launch.client import ForkServerClient
from .picture import Picture

log = logging.getLogger("moectl.agent.warm")

RETRY_S = 10.0  # a folder that cannot be read is mended by a person, not within a second
LOOK_S = 3600.0  # nothing to do until something changes


class Warmer:
    """Keeps a template of every declared model in the fork server."""

    def __init__(self, picture: Picture, fork_server: ForkServerClient) -> None:
        self._picture = picture
        self._fork_server = fork_server
        self._warm: set[str] = set()

    def forget(self) -> None:
        """The fork server is a new one: everything is to be made again."""
        self._warm.clear()
        self._picture.changes.notify()

    async def run(self) -> None:
        """Warm what is declared until cancelled."""
        changes = self._picture.changes
        while True:
            ticket = changes.ticket()
            missing = sorted(set(self._picture.folders.values()) - self._warm)
            all_warm = True
            for folder in missing:
                all_warm = await self._warm_one(folder) and all_warm
            if all_warm:
                await changes.wait(ticket, LOOK_S)
            else:
                await asyncio.sleep(RETRY_S)

    async def _warm_one(self, folder: str) -> bool:
        try:
            await self._fork_server.template(folder)
        except MoectlError as error:
            log.warning("template of %s: %s", folder, error.message)
            return False
        self._warm.add(folder)
        return True
