"""What does moectl ask of a store? The words and the contract; two implementations speak it.

A store is a revisioned map from text keys to bytes with compare-and-swap transactions, leases and
watches: etcd's model, with names near those of the `etcd3` package. `memory.MemoryStore` and
`etcd.EtcdStore` pass one contract suite, so code above this file never asks which one it has.

Laws that callers may rely on:

- Every change has one revision; the changes of one transaction share it.
- A watch delivers whole revisions, in order, none lost and none twice, over restarts of the server.
  When the history it needs was compacted it delivers one batch with `reset=True` instead.
- Every call ends within the store's deadline. A read that did not get an answer raises
  StoreUnavailableError. A write that was never sent raises it too; a write that may have happened
  raises StoreAmbiguousError: read back, never send again.
- Standing waits (a watch, a campaign) outlive outages and end by cancellation, `aclose` or `close`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from ..errors import StoreError

if TYPE_CHECKING:
    from .election import Leadership
    from .lease import Lease

# etcd refuses requests over 1.5 MiB and transactions over 128 operations unless its flags were
# changed. Both stores hold to that, so that what passes the tests passes on anybody's etcd.
VALUE_BYTES_MAX = 1024 * 1024
REQUEST_BYTES_MAX = 1536 * 1024 - 16 * 1024  # less the framing that etcd counts
TRANSACTION_OPS_MAX = 128


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as of one revision. A deleted key in a watch event has version 0 and no value."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int  # 1 for the first put since the key was created
    lease: int = 0  # id of the lease that it dies with; 0 for none

    @property
    def text(self) -> str:
        """The value as UTF-8 text."""
        return self.value.decode()


@dataclass(frozen=True, slots=True)
class Range:
    """The keys of a prefix, sorted, all as of `revision`."""

    kvs: list[KeyValue]
    revision: int


class EventType(StrEnum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of one key."""

    type: EventType
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes up to and including `revision`.

    With `reset` the history in between is gone: the batch holds a PUT of every key now present
    (with its true revisions) and a DELETE of every key that vanished: it stands for the whole
    prefix.
    """

    revision: int
    events: tuple[WatchEvent, ...]
    reset: bool = False


class CompareTarget(StrEnum):
    """Which property of a key a comparison looks at; equality is the only question asked."""

    VERSION = "version"
    MOD_REVISION = "mod_revision"
    CREATE_REVISION = "create_revision"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction. Made by the `..._is` functions below."""

    key: str
    target: CompareTarget
    expected: int | bytes


class OpKind(StrEnum):
    """What an operation of a transaction does."""

    PUT = "put"
    DELETE = "delete"
    DELETE_PREFIX = "delete_prefix"
    GET = "get"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a transaction. Made by the `..._op` functions below."""

    kind: OpKind
    key: str
    value: bytes = b""
    lease: int = 0


# Of a put: the revision; of a delete: how many keys went; of a get: the key, or None when absent.
OpResult = KeyValue | int | None


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What a transaction did. `responses` belong to the branch that ran, in its order."""

    succeeded: bool
    revision: int
    responses: tuple[OpResult, ...]


def version_is(key: str, version: int) -> Compare:
    """The key was put `version` times since its creation; 0 means it is absent."""
    return Compare(key, CompareTarget.VERSION, version)


def mod_revision_is(key: str, revision: int) -> Compare:
    """Nobody has changed the key since `revision`; 0 means it is absent."""
    return Compare(key, CompareTarget.MOD_REVISION, revision)


def create_revision_is(key: str, revision: int) -> Compare:
    """The key is the one created at `revision`, whatever was put into it since."""
    return Compare(key, CompareTarget.CREATE_REVISION, revision)


def value_is(key: str, value: bytes | str) -> Compare:
    """The key is present and holds exactly this value."""
    return Compare(key, CompareTarget.VALUE, to_bytes(value))


def put_op(key: str, value: bytes | str, lease: int = 0) -> Op:
    """Put a key, attached to a lease when one is given (and detached from any other)."""
    return Op(OpKind.PUT, key, to_bytes(value), lease)


def delete_op(key: str) -> Op:
    """Delete a key if it is there."""
    return Op(OpKind.DELETE, key)


def delete_prefix_op(prefix: str) -> Op:
    """Delete every key that begins with `prefix`."""
    return Op(OpKind.DELETE_PREFIX, prefix)


def get_op(key: str) -> Op:
    """Read a key as it is after the operations before this one."""
    return Op(OpKind.GET, key)


def to_bytes(value: bytes | str) -> bytes:
    """Text as UTF-8; bytes as they are."""
    return value.encode() if isinstance(value, str) else value


class Watch(Protocol):
    """A standing watch on a prefix. One reader at a time; a cancelled `anext` loses nothing."""

    def __aiter__(self) -> "Watch": ...

    async def __anext__(self) -> WatchBatch: ...

    async def ready(self) -> int:
        """Wait until the starting point is fixed; changes after the returned revision will come."""
        ...

    async def aclose(self) -> None:
        """End the watch: a waiting reader stops iterating. Can be called twice."""
        ...

    async def __aenter__(self) -> "Watch": ...

    async def __aexit__(self, *exc_info: object) -> None: ...


class Store(Protocol):
    """The contract. Keys are non-empty text; values are bytes (text is encoded as UTF-8)."""

    async def get(self, key: str) -> KeyValue | None:
        """The key now, or None when it is absent."""
        ...

    async def get_prefix(self, prefix: str, *, revision: int = 0) -> Range:
        """All keys under a prefix, as of one revision (0: now).

        Raises CompactedError when that revision is no longer kept.
        """
        ...

    async def put(self, key: str, value: bytes | str, *, lease: int = 0) -> int:
        """Set a key; returns the revision. Raises LeaseLostError when the lease is gone."""
        ...

    async def delete(self, key: str) -> bool:
        """Delete a key; False when it was absent."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Delete all keys under a prefix in one revision; returns how many there were."""
        ...

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """If every comparison holds do `success`, else `failure`; all or nothing, one revision."""
        ...

    async def lease(self, ttl_s: float) -> "Lease":
        """A new lease of at least `ttl_s` seconds; `lease.start()` keeps it alive."""
        ...

    def watch_prefix(self, prefix: str, *, start_revision: int = 0) -> Watch:
        """Every change under a prefix from `start_revision` on (0: from the first use on)."""
        ...

    async def campaign(self, key: str, value: bytes | str, lease: "Lease") -> "Leadership":
        """Wait until this key is ours, held by the lease; see `election`."""
        ...

    async def lock(self, name: str, lease: "Lease") -> "Leadership":
        """Wait for a lock; `async with await store.lock(...)` gives it back at the end."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        ...

    async def close(self) -> None:
        """End watches, keep-alives and connections. Leases are left to expire or were revoked."""
        ...


def check_transaction(success: Sequence[Op], failure: Sequence[Op]) -> None:
    """Refuse what etcd would refuse, before anything is sent. Raises StoreError."""
    for branch in (success, failure):
        if len(branch) > TRANSACTION_OPS_MAX:
            raise StoreError(
                f"transaction has {len(branch)} operations, the store takes {TRANSACTION_OPS_MAX}",
                next_step="split the transaction",
            )
        for op in branch:
            check_put(op.key, op.value)
        _check_no_key_twice(branch)
    size = sum(len(op.key.encode()) + len(op.value) for op in (*success, *failure))
    if size > REQUEST_BYTES_MAX:
        raise StoreError(
            f"transaction holds {size} bytes, the store takes {REQUEST_BYTES_MAX}",
            next_step="split the transaction",
        )


def check_put(key: str, value: bytes) -> None:
    """Refuse an empty key or a value over 1 MiB. Raises StoreError."""
    check_key(key)
    if len(value) > VALUE_BYTES_MAX:
        raise StoreError(
            f"{key}: value of {len(value)} bytes, the store takes {VALUE_BYTES_MAX}",
            next_step="store a smaller record",
        )


def check_key(key: str) -> None:
    """Refuse an empty key. Raises StoreError."""
    if not key:
        raise StoreError("an empty key was given", next_step="use a key from core.records.Keys")


def _check_no_key_twice(branch: Sequence[Op]) -> None:
    put_keys = [op.key for op in branch if op.kind is OpKind.PUT]
    doubled = len(put_keys) != len(set(put_keys))
    for op in branch:
        if op.kind is OpKind.DELETE:
            doubled = doubled or op.key in put_keys
        elif op.kind is OpKind.DELETE_PREFIX:
            doubled = doubled or any(key.startswith(op.key) for key in put_keys)
    if doubled:
        raise StoreError(
            f"a transaction writes a key twice: {sorted(put_keys)}",
            next_step="write each key once in a transaction",
        )
