"""How does a process keep its own records in the store, whatever happens to lease and store?

`Publisher` holds the wanted records in memory, one value a key (so nothing grows while the store is
away), and writes what differs: what changed together in one transaction, so that everyone who
watches wakes once. All keys hang on one lease; when it is lost a new one is taken and everything is
written again. Events and acknowledgements without a lease go the same way.
"""

import asyncio
import contextlib
import logging
from itertools import islice

from ..core.errors import LeaseLostError, StoreError
from ..core.store.lease import Lease
from ..core.store.protocol import (
    REQUEST_BYTES_MAX,
    TRANSACTION_OPS_MAX,
    Op,
    Store,
    delete_op,
    put_op,
)

log = logging.getLogger("moectl.publish")

RETRY_S = 0.3  # after a failure; outages are seconds
KEYS_MAX = 10_000  # a node has tens; more is a bug, and the oldest go

Wanted = tuple[bytes | None, bool]  # value (None: gone), and whether it hangs on the lease


class Publisher:
    """Wanted records of one process; `put` and `delete` never wait."""

    def __init__(self, store: Store, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._wanted: dict[str, Wanted] = {}
        self._dirty: dict[str, None] = {}  # in the order of the first change
        self._wake = asyncio.Event()
        self._lease: Lease | None = None
        self._is_idle = asyncio.Event()

    def put(self, key: str, value: str | bytes, *, leased: bool = True) -> None:
        """Want a record; written as soon as the store allows, unless it is there already."""
        data = value.encode() if isinstance(value, str) else value
        if self._wanted.get(key) != (data, leased):
            self._want(key, data, leased)

    def delete(self, key: str) -> None:
        """Want a record gone."""
        known = self._wanted.get(key)
        if known is None or known[0] is not None:
            self._want(key, None, False)

    def _want(self, key: str, data: bytes | None, leased: bool) -> None:
        self._wanted[key] = (data, leased)
        self._dirty[key] = None
        while len(self._wanted) > KEYS_MAX:
            oldest = next(iter(self._wanted))
            del self._wanted[oldest]
            self._dirty.pop(oldest, None)
        self._is_idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            try:
                lease = await self._ensure_lease()
                await self._write_dirty(lease)
                await self._until_work(lease)
            except LeaseLostError:
                self._forget_lease()
            except StoreError as error:  # ambiguous or away: puts are idempotent, write again
                log.warning("store: %s", error.message)
                await asyncio.sleep(RETRY_S)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything wanted is written; False when that took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()
                return True
        return False

    async def close(self) -> None:
        """Give the lease and its keys back, if the store is there."""
        lease, self._lease = self._lease, None
        if lease is not None:
            with contextlib.suppress(StoreError):
                await lease.revoke()

    async def _ensure_lease(self) -> Lease:
        if self._lease is not None and self._lease.lost.is_set():
            self._forget_lease()
        if self._lease is None:
            self._lease = await self._store.lease(self._ttl_s)
            self._lease.start()
        return self._lease

    def _forget_lease(self) -> None:
        """Everything that hung on it is gone, or will be: write it again under a new one."""
        if self._lease is not None:
            log.warning("lease %x is lost: registering again", self._lease.id)
        self._lease = None
        for key, (data, leased) in self._wanted.items():
            if leased and data is not None:
                self._dirty[key] = None

    async def _write_dirty(self, lease: Lease) -> None:
        while self._dirty:
            batch = self._next_batch()
            await self._store.transaction([], [_op(key, *batch[key], lease) for key in batch])
            for key, written in batch.items():
                if self._wanted.get(key) == written:
                    self._settle(key, *written)
        self._is_idle.set()

    def _next_batch(self) -> dict[str, Wanted]:
        """The oldest changes that fit into one transaction; at least one."""
        batch: dict[str, Wanted] = {}
        left = REQUEST_BYTES_MAX // 2  # keys and framing count too
        for key in islice(self._dirty, TRANSACTION_OPS_MAX):
            data = self._wanted[key][0]
            left -= len(data or b"")
            if batch and left < 0:
                break
            batch[key] = self._wanted[key]
        return batch

    def _settle(self, key: str, data: bytes | None, leased: bool) -> None:
        """A record is in the store as it is wanted."""
        self._dirty.pop(key, None)
        if data is None or not leased:
            del self._wanted[key]  # nothing will ever take it away: done for good

    async def _until_work(self, lease: Lease) -> None:
        """Until a record changes or the lease is lost."""
        self._wake.clear()
        if self._dirty:
            return
        waits = {asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(lease.lost.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _op(key: str, data: bytes | None, leased: bool, lease: Lease) -> Op:
    if data is None:
        return delete_op(key)
    return put_op(key, data, lease.id if leased else 0)
