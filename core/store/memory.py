"""A store inside one process, for tests and simulations: etcd's behaviour without etcd.

It ships with the product because the same contract suite holds it equal to `etcd.EtcdStore`. Time
comes from a Clock, so leases can expire in a simulation. Use it in one event loop.
"""

import asyncio
import math
import weakref
from collections.abc import Sequence

from ..clock import Clock
from ..errors import LeaseLostError, StoreError
from . import election
from .history import History
from .lease import Lease
from .protocol import (
    Compare,
    KeyValue,
    Op,
    OpKind,
    Range,
    TxnResult,
    WatchBatch,
    check_key,
    check_put,
    check_transaction,
    delete_op,
    delete_prefix_op,
    put_op,
    to_bytes,
)
from .resume import WatchCursor

LEASE_TTL_S_MIN = 1  # etcd counts in whole seconds
HISTORY_EVENTS_MAX = 100_000  # then the older half is compacted: a long test must not grow for ever


class MemoryStore:
    """The contract of `protocol.Store` in memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._history = History()
        self._leases: dict[int, tuple[float, float]] = {}  # id -> (ttl_s, expires at)
        self._handles: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._next_lease = 1
        self._changed = asyncio.Event()  # set and replaced at every change
        self._reaper: asyncio.Task[None] | None = None
        self._closed = False

    async def get(self, key: str) -> KeyValue | None:
        """See `protocol.Store`, as for all methods here."""
        check_key(key)
        await self._enter()
        return self._history.get(key)

    async def get_prefix(self, prefix: str, *, revision: int = 0) -> Range:
        await self._enter()
        return self._history.get_prefix(prefix, revision)

    async def put(self, key: str, value: bytes | str, *, lease: int = 0) -> int:
        data = to_bytes(value)
        check_put(key, data)
        return (await self.transaction([], [put_op(key, data, lease)])).revision

    async def delete(self, key: str) -> bool:
        result = await self.transaction([], [delete_op(key)])
        return bool(result.responses[0])

    async def delete_prefix(self, prefix: str) -> int:
        (count,) = (await self.transaction([], [delete_prefix_op(prefix)])).responses
        assert isinstance(count, int)
        return count

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        check_transaction(success, failure)
        await self._enter()
        for op in (*success, *failure):
            if op.kind is OpKind.PUT and op.lease and op.lease not in self._leases:
                raise LeaseLostError(f"{op.key}: lease {op.lease:x} does not exist")
        return self._apply(compare, success, failure)

    def _apply(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]
    ) -> TxnResult:
        before = self._history.revision
        result = self._history.apply(compare, success, failure)
        if self._history.revision != before:
            if self._history.event_count > HISTORY_EVENTS_MAX:
                self._history.compact(self._history.middle_revision)
            self._wake()
        return result

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _enter(self) -> None:
        """Let others run, as every call of a real store does; then see to the leases."""
        await asyncio.sleep(0)
        if self._closed:
            raise StoreError("the store was closed", next_step="use a new store")
        self._expire_leases()

    async def lease(self, ttl_s: float) -> Lease:
        await self._enter()
        granted_s = float(max(LEASE_TTL_S_MIN, math.ceil(ttl_s)))
        lease_id, self._next_lease = self._next_lease, self._next_lease + 1
        now = self._clock.monotonic()
        self._leases[lease_id] = (granted_s, now + granted_s)
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.create_task(self._reap(), name="memory-store-leases")
        lease = Lease(lease_id, granted_s, now, self._clock, _LeaseDriver(self))
        self._handles.add(lease)
        return lease

    def _end_lease(self, lease_id: int) -> None:
        self._leases.pop(lease_id, None)
        held = [kv.key for kv in self._history.get_prefix("").kvs if kv.lease == lease_id]
        if held:
            self._apply([], [delete_op(key) for key in held], [])

    def _expire_leases(self) -> None:
        now = self._clock.monotonic()
        for lease_id in [key for key, (_, end) in self._leases.items() if end <= now]:
            self._end_lease(lease_id)

    async def _reap(self) -> None:
        while self._leases:
            next_end = min(end for _, end in self._leases.values())
            await self._clock.sleep(max(0.0, next_end - self._clock.monotonic()))
            self._expire_leases()

    def watch_prefix(self, prefix: str, *, start_revision: int = 0) -> "MemoryWatch":
        return MemoryWatch(self, prefix, start_revision)

    async def campaign(self, key: str, value: bytes | str, lease: Lease) -> election.Leadership:
        return await election.campaign(self, key, value, lease)

    async def lock(self, name: str, lease: Lease) -> election.Leadership:
        return await election.campaign(self, name, b"", lease)

    async def compact(self, revision: int) -> None:
        await self._enter()
        self._history.compact(revision)

    async def close(self) -> None:
        self._closed = True
        self._wake()
        for lease in list(self._handles):
            await lease.stop()
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)


class _LeaseDriver:
    """See `lease.LeaseDriver`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def renew(self, lease_id: int, timeout_s: float) -> float:
        await self._store._enter()
        if lease_id not in self._store._leases:
            raise LeaseLostError(f"lease {lease_id:x} does not exist")
        ttl_s, _ = self._store._leases[lease_id]
        self._store._leases[lease_id] = (ttl_s, self._store._clock.monotonic() + ttl_s)
        return ttl_s

    async def revoke(self, lease_id: int) -> None:
        await self._store._enter()
        self._store._end_lease(lease_id)

    def release(self) -> None:
        pass


class MemoryWatch:
    """A watch that reads the history itself, so it buffers nothing."""

    def __init__(self, store: MemoryStore, prefix: str, start_revision: int) -> None:
        self._store = store
        self._prefix = prefix
        self._start_revision = start_revision
        self._cursor: WatchCursor | None = None
        self._closed = False

    async def ready(self) -> int:
        """See `protocol.Watch`, as for all methods here."""
        return self._ready_cursor().revision

    def _ready_cursor(self) -> WatchCursor:
        if self._cursor is None:
            self._cursor = self._seed()
        return self._cursor

    def _seed(self) -> WatchCursor:
        history = self._store._history
        revision = self._start_revision - 1 if self._start_revision else history.revision
        try:
            known = history.get_prefix(self._prefix, max(revision, 0)).kvs if revision > 1 else []
        except StoreError:  # compacted, or in the future: nothing is known of what was there
            known = []
        return WatchCursor(revision, (kv.key for kv in known))

    def __aiter__(self) -> "MemoryWatch":
        return self

    async def __anext__(self) -> WatchBatch:
        cursor = self._ready_cursor()
        while not (self._closed or self._store._closed):
            changed = self._store._changed
            self._store._expire_leases()
            batch = self._take(cursor)
            if batch is not None:
                return batch
            await changed.wait()
        raise StopAsyncIteration

    def _take(self, cursor: WatchCursor) -> WatchBatch | None:
        history = self._store._history
        try:
            events = history.changes_after(cursor.revision, self._prefix)
        except StoreError:  # compacted, or from a future that this history never had
            return cursor.reset(history.get_prefix(self._prefix))
        if events:
            return cursor.deliver(events)
        cursor.progress(history.revision)
        return None

    async def aclose(self) -> None:
        self._closed = True
        self._store._wake()

    async def __aenter__(self) -> "MemoryWatch":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
