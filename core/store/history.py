"""What did the store hold at a revision, and what changed since? The pure part of the memory store.

Keeps every version of every key until it is compacted, numbered as etcd numbers them: an empty
store has revision 1, a transaction that writes takes the next number, one that does not takes none.
No time, no asyncio.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from ..errors import CompactedError, StoreError
from .protocol import (
    Compare,
    CompareTarget,
    EventType,
    KeyValue,
    Op,
    OpKind,
    OpResult,
    Range,
    TxnResult,
    WatchEvent,
)


class History:
    """All versions of all keys between the compacted revision and now."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0  # reads below this revision are refused
        self._now: dict[str, KeyValue] = {}
        self._versions: dict[str, list[KeyValue]] = {}  # by mod_revision; version 0 = deleted
        self._log: list[WatchEvent] = []  # by mod_revision
        self._log_revisions: list[int] = []  # the mod_revision of each entry of the log

    def get(self, key: str) -> KeyValue | None:
        """The key now."""
        return self._now.get(key)

    def get_prefix(self, prefix: str, revision: int = 0) -> Range:
        """Sorted keys at a revision (0: now), which comes back as the range's revision."""
        if revision == 0 or revision == self.revision:
            found = [kv for key, kv in self._now.items() if key.startswith(prefix)]
            return Range(sorted(found, key=_key_bytes), self.revision)
        self._check_kept(revision)
        found = [
            versions[index - 1]
            for key, versions in self._versions.items()
            if key.startswith(prefix)
            and (index := bisect_right(versions, revision, key=_mod_revision)) > 0
            and versions[index - 1].version > 0
        ]
        return Range(sorted(found, key=_key_bytes), revision)

    def _check_kept(self, revision: int) -> None:
        if revision > self.revision:
            raise StoreError(
                f"revision {revision} is in the future, the store is at {self.revision}",
                next_step="read without a revision",
            )
        if revision < self.compacted:
            raise CompactedError(
                f"revision {revision} was compacted away, the oldest kept is {self.compacted}",
                compact_revision=self.compacted,
            )

    def changes_after(self, revision: int, prefix: str) -> list[WatchEvent]:
        """Changes under a prefix with a revision above the one given.

        Raises CompactedError when some of them may be gone, StoreError for a future revision.
        """
        self._check_kept(revision)
        first = bisect_right(self._log_revisions, revision)
        return [event for event in self._log[first:] if event.kv.key.startswith(prefix)]

    def apply(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]
    ) -> TxnResult:
        """Run a transaction. Operations were checked; leases are the caller's business."""
        succeeded = all(self._holds(condition) for condition in compare)
        revision = self.revision + 1
        before = len(self._log)
        responses = [self._run(op, revision) for op in (success if succeeded else failure)]
        if len(self._log) > before:
            self.revision = revision
        return TxnResult(succeeded, self.revision, tuple(responses))

    def _holds(self, compare: Compare) -> bool:
        kv = self._now.get(compare.key)
        if compare.target is CompareTarget.VALUE:
            return kv is not None and kv.value == compare.expected
        actual = 0 if kv is None else getattr(kv, compare.target.value)
        return bool(actual == compare.expected)

    def _run(self, op: Op, revision: int) -> OpResult:
        actions: dict[OpKind, Callable[[], OpResult]] = {
            OpKind.PUT: lambda: self._put(op, revision),
            OpKind.DELETE: lambda: self._delete([op.key], revision),
            OpKind.DELETE_PREFIX: lambda: self._delete(self._keys_under(op.key), revision),
            OpKind.GET: lambda: self._now.get(op.key),
        }
        return actions[op.kind]()

    def _keys_under(self, prefix: str) -> list[str]:
        return sorted(key for key in self._now if key.startswith(prefix))

    def _put(self, op: Op, revision: int) -> int:
        old = self._now.get(op.key)
        created = revision if old is None else old.create_revision
        version = 1 if old is None else old.version + 1
        kv = KeyValue(op.key, op.value, created, revision, version, op.lease)
        self._now[op.key] = kv
        self._record(WatchEvent(EventType.PUT, kv))
        return revision

    def _delete(self, keys: Sequence[str], revision: int) -> int:
        present = [key for key in keys if key in self._now]
        for key in present:
            del self._now[key]
            self._record(WatchEvent(EventType.DELETE, KeyValue(key, b"", 0, revision, 0)))
        return len(present)

    def _record(self, event: WatchEvent) -> None:
        self._versions.setdefault(event.kv.key, []).append(event.kv)
        self._log.append(event)
        self._log_revisions.append(event.kv.mod_revision)

    @property
    def event_count(self) -> int:
        """Changes kept."""
        return len(self._log)

    @property
    def middle_revision(self) -> int:
        """The revision in the middle of the changes kept."""
        return self._log_revisions[len(self._log) // 2]

    def compact(self, revision: int) -> None:
        """Forget what only revisions below this one could see."""
        if revision <= self.compacted:
            raise CompactedError(
                f"revision {revision} was compacted already, up to {self.compacted}",
                compact_revision=self.compacted,
            )
        self._check_kept(revision)
        self.compacted = revision
        first = bisect_right(self._log_revisions, revision)
        del self._log[:first], self._log_revisions[:first]
        for key in list(self._versions):
            versions = self._versions[key]
            kept = versions[max(0, bisect_right(versions, revision, key=_mod_revision) - 1) :]
            if kept[0].version == 0 and kept[0].mod_revision <= revision:
                kept = kept[1:]
            if kept:
                self._versions[key] = kept
            else:
                del self._versions[key]


def _mod_revision(kv: KeyValue) -> int:
    return kv.mod_revision


def _key_bytes(kv: KeyValue) -> bytes:
    return kv.key.encode()  # etcd sorts by bytes
