"""How does a process tell people what happened? Event records on a lease of an hour.

Bounded: with the store away only the newest events are kept, and how many were dropped is said in
the log. Writing is best effort, because an event is news and never state.
"""

import asyncio
import logging
from collections import deque

from ..core.clock import Clock
from ..core.errors import LeaseLostError, StoreAmbiguousError, StoreError
from ..core.records import EventRecord, Keys, to_json
from ..core.store.protocol import Store

log = logging.getLogger("moectl.events")

LEASE_S = 3600.0  # how long an event can be read
RENEW_S = 600.0  # events of so long share a lease: few leases, and an hour is kept to a sixth
WAITING_MAX = 256
RETRY_S = 0.5


class EventLog:
    """Events of one process; `tell` never waits."""

    def __init__(self, store: Store, keys: Keys, source: str, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._source = source
        self._clock = clock
        self._waiting: deque[EventRecord] = deque()
        self._wake = asyncio.Event()
        self._count = 0
        self._lease = (0, -RENEW_S)  # id, and when it was taken (monotonic)

    def tell(self, severity: str, subject: str, reason: str, message: str) -> None:
        """Record something a person may want to know; `reason` is a CamelCase word."""
        now = self._clock.now()
        self._count += 1
        level = {"error": logging.ERROR, "warning": logging.WARNING}.get(severity, logging.INFO)
        log.log(level, "%s %s: %s", subject, reason, message)
        event_id = f"{int(now * 1000):013d}-{self._source}-{self._count}"
        self._waiting.append(EventRecord(event_id, now, severity, subject, reason, message))
        if len(self._waiting) > WAITING_MAX:
            dropped = self._waiting.popleft()
            log.warning("event dropped, the store is away: %s", dropped.reason)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                event = self._waiting[0]
                try:
                    lease = await self._current_lease()
                    await self._store.put(self._keys.event(event.id), to_json(event), lease=lease)
                except StoreAmbiguousError:
                    pass  # it may be there: an event twice is worse than none
                except LeaseLostError:
                    self._lease = (0, -RENEW_S)
                    continue
                except StoreError:
                    await asyncio.sleep(RETRY_S)
                    continue
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()

    async def _current_lease(self) -> int:
        lease_id, taken_s = self._lease
        now_s = self._clock.monotonic()
        if not lease_id or now_s - taken_s > RENEW_S:
            lease = await self._store.lease(LEASE_S)  # never renewed: it ends by itself
            self._lease = (lease.id, now_s)
        return self._lease[0]
