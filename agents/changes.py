"""How does one part of a process wait until another part's state has changed?

`Changes` wakes every waiter at each change. A waiter takes a ticket *before* it looks, so that a
change between its look and its wait is never missed.
"""

import asyncio


class Changes:
    """A counter that can be waited on; one event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._event = asyncio.Event()

    def ticket(self) -> int:
        """The state of affairs before a look."""
        return self._count

    def notify(self) -> None:
        """Something changed: wake all."""
        self._count += 1
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, ticket: int, timeout_s: float) -> bool:
        """True as soon as something changed after the ticket; False when the time is over."""
        if self._count != ticket:
            return True
        if timeout_s <= 0:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
