"""What does the store say now, as one consistent picture?

`Mirror` follows the cluster's whole prefix and keeps parsed records; `snapshot()` hands out a
frozen picture as of one revision, which is all that the pure code and the API ever look at. A
record that cannot be read (another version wrote it) is left out and listed in `unreadable`: one
bad record must not blind the controller to all the others.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..core.clock import Clock
from ..core.errors import MoectlError, StoreError
from ..core.plan import DeviceId, Placement
from ..core.records import (
    AckRecord,
    EndpointRecord,
    EventRecord,
    Keys,
    ModelStatus,
    NodeRecord,
    NodeStats,
    SpecRecord,
    TokenRecord,
    TransitionRecord,
    WorkerRecord,
    from_json,
)
from ..core.store.follow import follow_prefix
from ..core.store.protocol import EventType, KeyValue, Store, WatchBatch

T = TypeVar("T")
RETRY_S = 0.3  # between attempts at the first listing: outages are seconds, a hurry is pointless


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """A record, and the revision that a fenced write over it must name."""

    value: T
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything in the store as of `revision`. Never changed after it was made."""

    keys: Keys
    revision: int = 0
    specs: Mapping[tuple[str, str], Seen[SpecRecord]] = field(default_factory=dict)
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    workers: Mapping[str, Mapping[DeviceId, WorkerRecord]] = field(default_factory=dict)
    placements: Mapping[str, Seen[Placement]] = field(default_factory=dict)
    transitions: Mapping[str, Seen[TransitionRecord]] = field(default_factory=dict)
    active: Mapping[str, Seen[str]] = field(default_factory=dict)
    acks: Mapping[str, Mapping[str, AckRecord]] = field(default_factory=dict)
    status: Mapping[str, Seen[ModelStatus]] = field(default_factory=dict)
    stats: Mapping[str, NodeStats] = field(default_factory=dict)
    events: Mapping[str, EventRecord] = field(default_factory=dict)
    tokens: Mapping[str, Seen[TokenRecord]] = field(default_factory=dict)
    endpoints: Mapping[str, EndpointRecord] = field(default_factory=dict)

    def model_spec(self, model: str) -> Seen[SpecRecord] | None:
        """The declared model, or None."""
        return self.specs.get(("Model", model))

    def running(self, model: str) -> Seen[TransitionRecord] | None:
        """The model's running transition, or None."""
        active = self.active.get(model)
        return None if active is None else self.transitions.get(active.value)

    def history(self, model: str) -> list[TransitionRecord]:
        """All transitions of a model that are still kept, oldest first."""
        own = [seen.value for seen in self.transitions.values() if seen.value.model == model]
        return sorted(own, key=lambda t: (t.accepted_at, t.attempt, t.operation_id))

    def models(self) -> list[str]:
        """Every model that is declared, placed, changing or has a status."""
        declared = {name for kind, name in self.specs if kind == "Model"}
        return sorted(declared | set(self.placements) | set(self.active) | set(self.status))


@dataclass(frozen=True, slots=True)
class Table:
    """How the records of one prefix are parsed and where they go."""

    name: str
    parse: Callable[[bytes], Any]
    is_fenced: bool  # whether writers need the record's revision


def _record(name: str, cls: type[Any], is_fenced: bool = False) -> Table:
    return Table(name, lambda value: from_json(cls, value), is_fenced)


def _tables(keys: Keys) -> dict[str, Table]:
    return {
        keys.specs: _record("specs", SpecRecord, True),
        keys.nodes: _record("nodes", NodeRecord),
        keys.workers: _record("workers", WorkerRecord),
        keys.placements: _record("placements", Placement, True),
        keys.transitions: _record("transitions", TransitionRecord, True),
        keys.active: Table("active", lambda value: value.decode(), True),
        keys.acks: _record("acks", AckRecord),
        keys.status: _record("status", ModelStatus, True),
        keys.stats: _record("stats", NodeStats),
        keys.events: _record("events", EventRecord),
        keys.tokens: _record("tokens", TokenRecord, True),
        keys.endpoints: _record("endpoints", EndpointRecord),
    }


# Tables whose changes never change a decision: they come often and must not wake the loop.
QUIET = frozenset({"stats", "events", "tokens", "endpoints"})


class Mirror:
    """A parsed copy of the cluster's prefix. `run` keeps it true until it is cancelled."""

    def __init__(self, store: Store, keys: Keys, clock: Clock) -> None:
        self.keys = keys
        self.revision = 0
        self.version = 0  # grows with every change
        self.control_version = 0  # grows with every change that a decision may depend on
        self.is_primed = False
        self.unreadable: dict[str, str] = {}
        self._store = store
        self._clock = clock
        self._tables = _tables(keys)
        self._records: dict[str, dict[str, Any]] = {t.name: {} for t in self._tables.values()}
        self._changed = asyncio.Event()
        self._control_changed = asyncio.Event()
        self._taken_at = clock.monotonic()

    def age_s(self) -> float:
        """Seconds since the store last told something: agents report about once a second."""
        return round(self._clock.monotonic() - self._taken_at, 1)

    def tokens(self) -> Collection[TokenRecord]:
        """The tokens that are good now."""
        return [seen.value for seen in self._records["tokens"].values()]

    async def read(self, key: str) -> bytes | None:
        """A record that is too large and too rarely asked for to be mirrored."""
        found = await self._store.get(key)
        return None if found is None else found.value

    async def run(self) -> None:
        """Follow the store until cancelled; the store being away is waited out."""
        while True:
            try:
                stream = follow_prefix(self._store, self.keys.root)
                async with contextlib.aclosing(stream):  # type: ignore[type-var]
                    async for batch in stream:
                        self._take(batch)
                return  # the store was closed
            except StoreError:
                await self._clock.sleep(RETRY_S)

    def _take(self, batch: WatchBatch) -> None:
        if batch.reset:
            self.unreadable.clear()
            for records in self._records.values():
                records.clear()
        loud = batch.reset
        for event in batch.events:
            loud |= self._take_event(event.type, event.kv)
        self.revision = max(self.revision, batch.revision)
        self.is_primed = True
        self._taken_at = self._clock.monotonic()
        self.version += 1
        self.control_version += loud
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if loud:
            changed, self._control_changed = self._control_changed, asyncio.Event()
            changed.set()

    def _take_event(self, kind: EventType, kv: KeyValue) -> bool:
        """Take one change in; True when a decision may depend on it."""
        prefix = self.keys.root + kv.key[len(self.keys.root) :].partition("/")[0] + "/"
        table = self._tables.get(prefix)
        if table is None:
            return False  # the leader's key, and prefixes of later versions
        name = kv.key[len(prefix) :]
        self.unreadable.pop(kv.key, None)
        self._records[table.name].pop(name, None)
        if kind is EventType.PUT:
            self._put(table, name, kv)
        return table.name not in QUIET

    def _put(self, table: Table, name: str, kv: KeyValue) -> None:
        try:
            value = table.parse(kv.value)
        except (MoectlError, ValueError) as error:
            self.unreadable[kv.key] = str(error)
            return
        self._records[table.name][name] = Seen(value, kv.mod_revision) if table.is_fenced else value

    def snapshot(self) -> Snapshot:
        """The picture as of the last batch."""
        records = self._records
        return Snapshot(
            keys=self.keys,
            revision=self.revision,
            specs={(s.value.kind, s.value.name): s for s in records["specs"].values()},
            nodes=dict(records["nodes"]),
            workers=_by_model(records["workers"].values()),
            placements=dict(records["placements"]),
            transitions=dict(records["transitions"]),
            active=dict(records["active"]),
            acks=_by_operation(records["acks"].values()),
            status=dict(records["status"]),
            stats=dict(records["stats"]),
            events=dict(records["events"]),
            tokens=dict(records["tokens"]),
            endpoints=dict(records["endpoints"]),
        )

    async def changed_since(self, version: int, timeout_s: float) -> None:
        """Return when `self.version` is past `version`, or after `timeout_s`.

        The version is the caller's: a change between its look and this call is not missed.
        """
        if self.version == version:
            await first_of(self._changed.wait(), self._clock.sleep(timeout_s))

    async def control_changed_since(self, control_version: int, timeout_s: float) -> None:
        """The same for `self.control_version`: figures and events of others wake nobody."""
        if self.control_version == control_version:
            await first_of(self._control_changed.wait(), self._clock.sleep(timeout_s))

    async def reach(self, revision: int, timeout_s: float) -> bool:
        """Wait until the mirror includes a revision; False when it does not in time."""
        end = self._clock.monotonic() + timeout_s
        while self.revision < revision:
            version = self.version
            left_s = end - self._clock.monotonic()
            if left_s <= 0:
                return False
            await self.changed_since(version, left_s)
        return True


def _by_model(workers: Any) -> dict[str, dict[DeviceId, WorkerRecord]]:
    grouped: dict[str, dict[DeviceId, WorkerRecord]] = defaultdict(dict)
    for worker in workers:
        grouped[worker.model][worker.device] = worker
    return dict(grouped)


def _by_operation(acks: Any) -> dict[str, dict[str, AckRecord]]:
    grouped: dict[str, dict[str, AckRecord]] = defaultdict(dict)
    for ack in acks:
        grouped[ack.operation_id][ack.node] = ack
    return dict(grouped)


async def first_of(*waits: Any) -> None:
    """Return when one of the waits is over; all others are cancelled, also when we are."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
