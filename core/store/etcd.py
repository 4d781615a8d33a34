"""The store on etcd: our own thin asyncio client on grpcio.

`etcd3`, the best-known client, cannot be imported beside a current protobuf (docs/store.md), so its
verbs are spoken here. What is grpc's is in `etcd_connection`, etcd's wire in `etcd_messages`,
watching in `etcd_watch`; this file says which request each verb of the contract is, and whether it
may be sent twice.
"""

import asyncio
import contextlib
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from ..clock import SystemClock
from ..errors import CompactedError, LeaseLostError, StoreError, StoreUnavailableError
from . import election
from . import etcd_wire_pb2 as wire
from .etcd_connection import Connection, Stream
from .etcd_failures import OutOfRangeError
from .etcd_messages import (
    ALARM,
    COMPACT,
    DELETE,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    MEMBER_LIST,
    PUT,
    RANGE,
    STATUS,
    TXN,
    WATCH,
    comparison,
    key_value,
    operation,
    range_bounds,
    transaction_result,
)
from .etcd_watch import EtcdWatch
from .lease import Lease
from .protocol import (
    Compare,
    KeyValue,
    Op,
    Range,
    TxnResult,
    check_key,
    check_put,
    check_transaction,
    to_bytes,
)
from .security import EtcdSecurity

PAGE_KEYS = 128  # of at most 1 MiB each: a page stays under the connection's message limit
LISTING_ATTEMPTS = 3  # a listing whose pages straddle a compaction starts again


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What one etcd member says of itself."""

    version: str
    db_bytes: int
    has_leader: bool
    alarms: tuple[str, ...]  # "NOSPACE": full, no writes; "CORRUPT": members differ
    members: int = 1

    def warnings(self) -> list[str]:
        """What an operator should act on, as sentences; empty when there is nothing."""
        found = []
        if not self.has_leader:
            found.append("etcd has no leader: more than half of its members must be up")
        if "NOSPACE" in self.alarms:
            found.append("etcd is full (NOSPACE): compact, defragment, `etcdctl alarm disarm`")
        if "CORRUPT" in self.alarms:
            found.append("etcd members hold different data (CORRUPT): restore from a good member")
        if self.members > 1 and _numbers(self.version) < SAFE_VERSION:
            found.append(
                f"etcd {self.version} with {self.members} members can lose agreement between them"
                f" after a crash; use {'.'.join(map(str, SAFE_VERSION))} or newer"
            )
        return found


ALARM_NAMES = {1: "NOSPACE", 2: "CORRUPT"}
SAFE_VERSION = (3, 5, 6)  # 3.5.0 to 3.5.5 can leave members with different data after a crash


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("-")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


class EtcdStore:
    """The contract of `protocol.Store` on etcd 3.4 or newer. Use it in one event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        deadline_s: float = 5.0,
        security: EtcdSecurity | None = None,
    ) -> None:
        self._connection = Connection(endpoints, deadline_s, security)
        self._clock = SystemClock()
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()

    async def get(self, key: str) -> KeyValue | None:
        """See `protocol.Store`, as for all methods here."""
        check_key(key)
        response = await self._connection.read(RANGE, wire.RangeRequest(key=key.encode()))
        return key_value(response.kvs[0]) if response.kvs else None

    async def get_prefix(self, prefix: str, *, revision: int = 0) -> Range:
        return await self._list(prefix, revision, False)

    async def _list(self, prefix: str, revision: int, keys_only: bool) -> Range:
        for _ in range(LISTING_ATTEMPTS - 1):
            try:
                return await self._list_once(prefix, revision, keys_only)
            except CompactedError:
                if revision:
                    raise
        return await self._list_once(prefix, revision, keys_only)

    async def _list_once(self, prefix: str, revision: int, keys_only: bool) -> Range:
        """All pages of a prefix at one revision: that of the first page when none was asked for."""
        first, end = range_bounds(prefix)
        kvs: list[KeyValue] = []
        while True:
            request = wire.RangeRequest(
                key=first, range_end=end, limit=PAGE_KEYS, revision=revision, keys_only=keys_only
            )
            try:
                page = await self._connection.read(RANGE, request)
            except OutOfRangeError as error:
                raise await self._why_out_of_range(revision, error) from error
            revision = revision or page.header.revision
            kvs.extend(key_value(kv) for kv in page.kvs)
            if not page.more:
                return Range(kvs, revision)
            first = page.kvs[-1].key + b"\0"

    async def _why_out_of_range(self, revision: int, error: OutOfRangeError) -> StoreError:
        """A watch is told the oldest revision kept; a range is only refused."""
        stream = await self._connection.open_stream(WATCH)
        try:
            create = wire.WatchCreateRequest(key=b"\0", start_revision=1)
            await stream.send(wire.WatchRequest(create_request=create))
            created = await stream.receive(self._connection.deadline_s)
            if revision > created.header.revision:
                return StoreError(
                    f"revision {revision} is in the future, etcd is at {created.header.revision}",
                    next_step="read without a revision",
                )
            canceled = await stream.receive(self._connection.deadline_s)
        finally:
            stream.cancel()
        oldest = canceled.compact_revision
        return CompactedError(
            f"revision {revision} was compacted away, the oldest kept is {oldest}",
            compact_revision=oldest,
        )

    async def put(self, key: str, value: bytes | str, *, lease: int = 0) -> int:
        data = to_bytes(value)
        check_put(key, data)
        request = wire.PutRequest(key=key.encode(), value=data, lease=lease)
        response = await self._connection.write(PUT, request)
        return int(response.header.revision)

    async def delete(self, key: str) -> bool:
        check_key(key)
        request = wire.DeleteRangeRequest(key=key.encode())
        return (await self._connection.write(DELETE, request)).deleted > 0

    async def delete_prefix(self, prefix: str) -> int:
        check_key(prefix)
        key, end = range_bounds(prefix)
        request = wire.DeleteRangeRequest(key=key, range_end=end)
        return int((await self._connection.write(DELETE, request)).deleted)

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        check_transaction(success, failure)
        request = wire.TxnRequest(
            compare=[comparison(item) for item in compare],
            success=[operation(op) for op in success],
            failure=[operation(op) for op in failure],
        )
        return transaction_result(await self._connection.write(TXN, request))

    async def lease(self, ttl_s: float) -> Lease:
        asked_at_s = self._clock.monotonic()
        # A grant whose answer was lost leaves a lease that nobody uses and that expires: safe.
        request = wire.LeaseGrantRequest(TTL=max(1, math.ceil(ttl_s)))
        response = await self._connection.read(LEASE_GRANT, request)
        driver = EtcdLeaseDriver(self._connection)
        lease = Lease(response.ID, float(response.TTL), asked_at_s, self._clock, driver)
        self._leases.add(lease)
        return lease

    def watch_prefix(self, prefix: str, *, start_revision: int = 0) -> EtcdWatch:
        watch = EtcdWatch(self._connection, self._list, prefix, start_revision)
        self._watches.add(watch)
        return watch

    async def campaign(self, key: str, value: bytes | str, lease: Lease) -> election.Leadership:
        return await election.campaign(self, key, value, lease)

    async def lock(self, name: str, lease: Lease) -> election.Leadership:
        return await election.campaign(self, name, b"", lease)

    async def compact(self, revision: int) -> None:
        try:
            await self._connection.read(COMPACT, wire.CompactionRequest(revision=revision))
        except OutOfRangeError as error:
            raise await self._why_out_of_range(revision, error) from error

    async def status(self) -> ServerStatus:
        """What the member that answers says of itself and of its cluster; for `doctor`."""
        response = await self._connection.read(STATUS, wire.StatusRequest())
        members = await self._connection.read(MEMBER_LIST, wire.MemberListRequest())
        alarms = await self._connection.read(ALARM, wire.AlarmRequest())
        return ServerStatus(
            response.version,
            response.db_size,
            response.leader != 0,
            tuple(sorted({ALARM_NAMES.get(item.alarm, "UNKNOWN") for item in alarms.alarms})),
            len(members.members),
        )

    async def close(self) -> None:
        for watch in list(self._watches):
            await watch.aclose()
        for lease in list(self._leases):
            await lease.stop()
        await self._connection.close()


class EtcdLeaseDriver:
    """Renews one lease over one stream, opened again after any failure."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stream: Stream | None = None

    async def renew(self, lease_id: int, timeout_s: float) -> float:
        """See `lease.LeaseDriver`."""
        try:
            async with asyncio.timeout(timeout_s):
                ttl_s = await self._renew(lease_id)
        except TimeoutError as error:
            self.release()
            raise StoreUnavailableError(
                f"lease {lease_id:x}: no answer in {timeout_s} s"
            ) from error
        except BaseException:
            self.release()  # a late answer to this request must not be taken for the next one's
            raise
        if ttl_s <= 0:
            raise LeaseLostError(f"lease {lease_id:x} is gone", next_step="take a new lease")
        return ttl_s

    async def _renew(self, lease_id: int) -> float:
        if self._stream is None:
            self._stream = await self._connection.open_stream(LEASE_KEEP_ALIVE)
        await self._stream.send(wire.LeaseKeepAliveRequest(ID=lease_id))
        return float((await self._stream.receive(None)).TTL)

    async def revoke(self, lease_id: int) -> None:
        """See `lease.LeaseDriver`."""
        with contextlib.suppress(LeaseLostError):  # gone already, which is what was wanted
            await self._connection.read(LEASE_REVOKE, wire.LeaseRevokeRequest(ID=lease_id))

    def release(self) -> None:
        """Let go of the stream; the next renewal opens another."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
