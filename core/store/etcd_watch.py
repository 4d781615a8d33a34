"""How does a watch on etcd go on through restarts, fail-overs and compactions?

It holds no buffer: a reader that is slow stops reading the stream, HTTP/2's flow control stops the
server, and etcd reads the rest from its history later. What the cursor says was delivered is all
the state there is, so a stream can be dropped at any point and opened again:

- the new stream is asked for the last delivered revision, and what it repeats is dropped. Asking
  one lower than needed is on purpose: older etcd forgets a deletion made exactly at the revision
  that is compacted, and says "compacted" only to those who ask for less;
- etcd does not end a stream after `canceled`, so that answer is acted upon, never waited out;
- a server whose history is younger than what was delivered (a wiped data directory) means a reset.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from ..errors import CompactedError, StoreError, StoreUnavailableError
from . import etcd_wire_pb2 as wire
from .etcd_connection import RETRY_S, Connection, Stream
from .etcd_messages import WATCH, range_bounds, watch_event
from .protocol import Range, WatchBatch, WatchEvent
from .resume import WatchCursor, split_last_revision

# (prefix, revision or 0 for now, keys only) -> the sorted keys at that revision
Lister = Callable[[str, int, bool], Awaitable[Range]]


class EtcdWatch:
    """See `protocol.Watch`. The stream is read only while a reader waits."""

    def __init__(
        self, connection: Connection, list_prefix: Lister, prefix: str, start_revision: int
    ) -> None:
        self._connection = connection
        self._list = list_prefix
        self._prefix = prefix
        self._start_revision = start_revision
        self._cursor: WatchCursor | None = None
        self._stream: Stream | None = None
        self._held: Sequence[WatchEvent] = ()  # of a revision that came in part
        self._work: asyncio.Task[WatchBatch] | None = None
        self._seeding = asyncio.Lock()
        self._token_tried = False
        self._closed = False

    async def ready(self) -> int:
        """See `protocol.Watch`. Waits out an outage."""
        while True:
            try:
                return (await self._seeded()).revision
            except StoreUnavailableError:
                await asyncio.sleep(RETRY_S)

    async def _seeded(self) -> WatchCursor:
        async with self._seeding:
            if self._cursor is None:
                self._cursor = await self._seed()
            return self._cursor

    async def _seed(self) -> WatchCursor:
        """Fix the starting point, and learn which keys the reader takes for present there."""
        if self._start_revision == 0:
            listed = await self._list(self._prefix, 0, True)
            return WatchCursor(listed.revision, (kv.key for kv in listed.kvs))
        revision = self._start_revision - 1
        if revision <= 1:  # the empty store
            return WatchCursor(revision)
        try:
            listed = await self._list(self._prefix, revision, True)
        except StoreUnavailableError:
            raise
        except StoreError:  # compacted, or in the future: a reset will follow
            return WatchCursor(revision)
        return WatchCursor(revision, (kv.key for kv in listed.kvs))

    def __aiter__(self) -> "EtcdWatch":
        return self

    async def __anext__(self) -> WatchBatch:
        """The next batch. A cancelled reader leaves the work to the next call: nothing is lost."""
        if self._closed:
            raise StopAsyncIteration
        if self._work is None:
            self._work = asyncio.create_task(self._next_batch(), name=f"watch-{self._prefix}")
        work = self._work
        await asyncio.wait({work})
        if self._work is work:
            self._work = None
        if work.cancelled():
            raise StopAsyncIteration
        return work.result()

    async def _next_batch(self) -> WatchBatch:
        while True:
            try:
                batch = await self._step()
            except StoreUnavailableError:
                self._drop_stream()
                await asyncio.sleep(RETRY_S)
                continue
            if batch is not None:
                return batch

    async def _step(self) -> WatchBatch | None:
        """Read one answer, opening the stream first if need be."""
        cursor = await self._seeded()
        if self._stream is None:
            self._stream = await self._open(cursor.revision)
            created = await self._stream.receive(self._connection.deadline_s)
            return await self._take(cursor, created)
        return await self._take(cursor, await self._stream.receive(None))

    async def _open(self, revision: int) -> Stream:
        key, end = range_bounds(self._prefix)
        stream = await self._connection.open_stream(WATCH)
        create = wire.WatchCreateRequest(
            key=key,
            range_end=end,
            start_revision=max(1, revision),
            progress_notify=True,
            fragment=True,
        )
        try:
            await stream.send(wire.WatchRequest(create_request=create))
        except BaseException:
            stream.cancel()
            raise
        return stream

    async def _take(self, cursor: WatchCursor, answer: wire.WatchResponse) -> WatchBatch | None:
        if answer.canceled:
            self._drop_stream()
            if answer.compact_revision == 0:
                raise self._refusal(answer.cancel_reason)
            return await self._reset(cursor)
        self._token_tried = False
        if answer.created:
            return await self._check_history(cursor, answer.header.revision)
        if not answer.events:
            cursor.progress(answer.header.revision)
            return None
        events = [*self._held, *(watch_event(event) for event in answer.events)]
        whole, self._held = split_last_revision(events) if answer.fragment else (events, ())
        return cursor.deliver(whole)

    def _refusal(self, reason: str) -> StoreError:
        """etcd 3.5 calls a token that ran out "permission denied": try once with a new one."""
        what = f"watch on {self._prefix}: etcd refused it: {reason}"
        was_tried, self._token_tried = self._token_tried, True
        is_about_user = "permission" in reason or "auth" in reason
        if is_about_user and not was_tried and self._connection.forget_token():
            return StoreUnavailableError(what)
        return StoreError(what, next_step="check the user that etcd was given")

    async def _check_history(self, cursor: WatchCursor, revision: int) -> WatchBatch | None:
        """Reset if the cluster as a whole is behind what was delivered; one member may lag."""
        if revision >= cursor.revision:
            return None
        if (await self._list(self._prefix, 0, True)).revision >= cursor.revision:
            return None
        self._drop_stream()
        return await self._reset(cursor)

    async def _reset(self, cursor: WatchCursor) -> WatchBatch:
        while True:
            with contextlib.suppress(StoreUnavailableError, CompactedError):
                return cursor.reset(await self._list(self._prefix, 0, False))
            await asyncio.sleep(RETRY_S)

    def _drop_stream(self) -> None:
        self._held = ()
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def aclose(self) -> None:
        """See `protocol.Watch`."""
        self._closed = True
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        self._drop_stream()

    async def __aenter__(self) -> "EtcdWatch":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
