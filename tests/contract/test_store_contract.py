"""Do both stores keep the contract of `core.store.protocol`? The same claims, memory and etcd.

One real etcd runs for the whole file. `backend.interrupt()` breaks every stream: SIGKILL and a
restart on the same data for etcd, nothing for memory, whose watch reads history directly.
"""

import asyncio
import itertools
import random
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from moectl.core.clock import SystemClock
from moectl.core.errors import (
    CompactedError,
    LeaseLostError,
    StoreAmbiguousError,
    StoreError,
    StoreUnavailableError,
)
from moectl.core.store.embedded import EmbeddedEtcd
from moectl.core.store.etcd import EtcdStore
from moectl.core.store.follow import apply_batch, follow_prefix
from moectl.core.store.memory import MemoryStore
from moectl.core.store.protocol import (
    EventType,
    KeyValue,
    Op,
    Store,
    Watch,
    WatchBatch,
    create_revision_is,
    delete_op,
    delete_prefix_op,
    get_op,
    mod_revision_is,
    put_op,
    value_is,
    version_is,
)

LIMIT_S = 20.0  # no wait of these tests comes near it


class EtcdServer:
    """A real etcd that can be killed, paused and started again. Only its process is signalled."""

    def __init__(self, root: Path) -> None:
        ports = _free_ports(2)
        self.etcd = EmbeddedEtcd(root / "data", ports[0], ports[1], root / "etcd.log")
        self.start()

    def start(self) -> None:
        self.process = self.etcd.start()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(timeout=10)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def restart(self) -> None:
        self.kill()
        self.start()
        await self.etcd.wait_healthy()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    running = EtcdServer(tmp_path_factory.mktemp("etcd"))
    try:
        with ThreadPoolExecutor(1) as other_thread:  # a loop may run in this one already
            other_thread.submit(asyncio.run, running.etcd.wait_healthy()).result()
        yield running
    finally:
        running.kill()


class Backend:
    """What a test may do besides using the store."""

    def __init__(self, store: Store, server: EtcdServer | None) -> None:
        self.store = store
        self.server = server

    async def interrupt(self) -> None:
        if self.server is not None:
            await self.server.restart()


@pytest_asyncio.fixture(params=["memory", "etcd"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    if request.param == "memory":
        made = Backend(MemoryStore(SystemClock()), None)
    else:
        server = request.getfixturevalue("server")
        made = Backend(EtcdStore([server.etcd.endpoint]), server)
    yield made
    await made.store.close()


@pytest.fixture
def store(backend: Backend) -> Store:
    return backend.store


@pytest.fixture
def root() -> str:
    """A prefix that no other test uses."""
    return f"/test/{uuid.uuid4().hex}/"


async def take_until(watch: Watch, done: Callable[[WatchBatch], bool]) -> list[WatchBatch]:
    batches = []
    async with asyncio.timeout(LIMIT_S):
        async for batch in watch:
            batches.append(batch)
            if done(batch):
                return batches
    raise AssertionError(f"the watch ended after {batches}")


async def take(watch: Watch, count: int) -> list[tuple[EventType, str, bytes]]:
    """The next `count` events; fails on a reset."""
    seen: list[tuple[EventType, str, bytes]] = []
    while len(seen) < count:
        (batch,) = await take_until(watch, lambda _: True)
        assert not batch.reset
        seen += [(event.type, event.kv.key, event.kv.value) for event in batch.events]
    return seen


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():  # noqa: ASYNC110 - the store is asked, nothing can tell us
            await asyncio.sleep(0.05)


# keys and values


async def test_a_key_is_put_read_changed_and_deleted(store: Store, root: str) -> None:
    key = f"{root}a"
    assert await store.get(key) is None
    created = await store.put(key, "one")
    changed = await store.put(key, b"two")
    assert changed > created
    assert await store.get(key) == KeyValue(key, b"two", created, changed, 2)
    assert await store.delete(key) is True
    assert await store.delete(key) is False
    assert await store.get(key) is None
    again = await store.put(key, "three")
    assert await store.get(key) == KeyValue(key, b"three", again, again, 1)


async def test_a_prefix_is_listed_in_byte_order_and_ends_where_it_ends(
    store: Store, root: str
) -> None:
    names = ["p/b", "p/a", "p/ä", "p/a/x", "p", "q", "p0", "p/~"]
    for name in names:
        await store.put(root + name, name)
    listed = await store.get_prefix(f"{root}p/")
    assert [kv.key.removeprefix(root) for kv in listed.kvs] == ["p/a", "p/a/x", "p/b", "p/~", "p/ä"]
    assert listed.revision == (await store.get_prefix("")).revision


async def test_a_prefix_can_be_listed_at_an_older_revision(store: Store, root: str) -> None:
    first = await store.put(f"{root}a", "1")
    second = await store.put(f"{root}b", "2")
    await store.put(f"{root}a", "3")
    await store.delete(f"{root}b")
    old = await store.get_prefix(root, revision=second)
    assert old.revision == second
    assert [(kv.key.removeprefix(root), kv.text) for kv in old.kvs] == [("a", "1"), ("b", "2")]
    older = await store.get_prefix(root, revision=first)
    assert [kv.text for kv in older.kvs] == ["1"]


async def test_a_revision_of_the_future_is_refused(store: Store, root: str) -> None:
    now = await store.put(f"{root}a", "1")
    with pytest.raises(StoreError, match="future"):
        await store.get_prefix(root, revision=now + 1000)


async def test_a_prefix_is_deleted_in_one_revision(store: Store, root: str) -> None:
    for name in ("a", "b", "c"):
        await store.put(f"{root}x/{name}", name)
    kept = await store.put(f"{root}y", "kept")
    assert await store.delete_prefix(f"{root}x/") == 3
    listed = await store.get_prefix(root)
    assert [kv.key for kv in listed.kvs] == [f"{root}y"]
    assert listed.revision == kept + 1
    assert await store.delete_prefix(f"{root}x/") == 0


async def test_a_value_of_a_mebibyte_is_kept_and_a_larger_one_refused(
    store: Store, root: str
) -> None:
    value = random.Random(0).randbytes(1024 * 1024)
    async with store.watch_prefix(root) as watch:
        await watch.ready()
        await store.put(f"{root}a", value)
        kv = await store.get(f"{root}a")
        assert kv is not None and kv.value == value
        assert await take(watch, 1) == [(EventType.PUT, f"{root}a", value)]
    with pytest.raises(StoreError, match="1048577 bytes"):
        await store.put(f"{root}a", value + b"x")
    with pytest.raises(StoreError, match="empty key"):
        await store.put("", "x")


async def test_a_large_prefix_is_listed_whole_and_at_one_revision(store: Store, root: str) -> None:
    """Pages are 128 keys: 600 keys are five, and a writer changes both ends in between."""
    for start in range(0, 600, 100):
        ops = [put_op(f"{root}{index:04}", "0") for index in range(start, start + 100)]
        await store.transaction([], ops)

    async def change_both_ends() -> None:
        for count in itertools.count(1):
            value = str(count)
            await store.transaction(
                [], [put_op(f"{root}0000", value), put_op(f"{root}0599", value)]
            )

    writer = asyncio.create_task(change_both_ends())
    try:
        for _ in range(10):
            listed = await store.get_prefix(root)
            assert len(listed.kvs) == 600
            assert listed.kvs[0].value == listed.kvs[-1].value
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


# transactions


async def test_each_kind_of_comparison_holds_and_fails(store: Store, root: str) -> None:
    key, absent = f"{root}a", f"{root}absent"
    created = await store.put(key, "1")
    changed = await store.put(key, "2")
    holding = [
        version_is(key, 2),
        mod_revision_is(key, changed),
        create_revision_is(key, created),
        value_is(key, "2"),
        version_is(absent, 0),
        mod_revision_is(absent, 0),
        create_revision_is(absent, 0),
    ]
    failing = [
        version_is(key, 1),
        mod_revision_is(key, created),
        create_revision_is(key, changed),
        value_is(key, "1"),
        value_is(absent, ""),
        version_is(absent, 1),
    ]
    assert (await store.transaction(holding, [])).succeeded
    for compare in holding:
        assert (await store.transaction([compare], [])).succeeded, compare
    for compare in failing:
        assert not (await store.transaction([*holding, compare], [])).succeeded, compare


async def test_a_transaction_does_one_branch_in_one_revision(store: Store, root: str) -> None:
    before = await store.put(f"{root}old", "x")
    done = await store.transaction(
        [version_is(f"{root}new", 0)],
        [
            put_op(f"{root}new", "1"),
            get_op(f"{root}new"),
            delete_op(f"{root}old"),
            delete_op(f"{root}never"),
            get_op(f"{root}old"),
        ],
        [put_op(f"{root}wrong", "branch")],
    )
    assert done.succeeded and done.revision == before + 1
    new = KeyValue(f"{root}new", b"1", before + 1, before + 1, 1)
    assert done.responses == (before + 1, new, 1, 0, None)
    refused = await store.transaction(
        [version_is(f"{root}new", 0)], [put_op(f"{root}new", "2")], [get_op(f"{root}new")]
    )
    assert not refused.succeeded
    assert refused.responses == (new,)
    assert refused.revision == done.revision  # nothing was written
    gone = await store.transaction([], [delete_prefix_op(root)])
    assert gone.responses == (1,)


@pytest.mark.parametrize(
    ("ops", "reason"),
    [
        ([put_op("k", "1"), put_op("k", "2")], "twice"),
        ([put_op("k", "1"), delete_op("k")], "twice"),
        ([put_op("k/1", "1"), delete_prefix_op("k/")], "twice"),
        ([get_op(f"k{index}") for index in range(129)], "129 operations"),
        ([put_op("a", b"x" * 2**20), put_op("b", b"x" * 2**20)], "bytes"),
        ([put_op("", "1")], "empty key"),
    ],
)
async def test_a_transaction_that_etcd_would_refuse_is_refused_by_both(
    store: Store, ops: list[Op], reason: str
) -> None:
    with pytest.raises(StoreError, match=reason):
        await store.transaction([], ops)


async def test_writers_that_compare_and_swap_lose_no_increment(store: Store, root: str) -> None:
    key = f"{root}counter"
    await store.put(key, "0")

    async def increment(times: int) -> None:
        for _ in range(times):
            while True:
                kv = await store.get(key)
                assert kv is not None
                put = put_op(key, str(int(kv.text) + 1))
                if (
                    await store.transaction([mod_revision_is(key, kv.mod_revision)], [put])
                ).succeeded:
                    break

    await asyncio.gather(*(increment(10) for _ in range(6)))
    kv = await store.get(key)
    assert kv is not None and kv.text == "60" and kv.version == 61


async def test_random_transactions_have_the_same_effect_on_both(
    server: EtcdServer, root: str
) -> None:
    """Everything observable is compared after each; revisions relative to the start."""
    memory, etcd = MemoryStore(SystemClock()), EtcdStore([server.etcd.endpoint])
    rng = random.Random(7)
    offset = await etcd.put(f"{root}start", "") - await memory.put(f"{root}start", "")
    keys = [f"{root}{name}" for name in ("a", "a/b", "a/c", "b", "c")]

    def relative(kv: KeyValue, by: int) -> tuple[object, ...]:
        return (kv.key, kv.value, kv.create_revision - by, kv.mod_revision - by, kv.version)

    for step in range(120):
        branches = [_random_ops(rng, keys, root, step) for _ in range(2)]
        compare = [version_is(rng.choice(keys), rng.randrange(3)) for _ in range(rng.randrange(2))]
        ours, theirs = (
            await memory.transaction(compare, *branches),
            await etcd.transaction(compare, *branches),
        )
        assert (ours.succeeded, ours.revision) == (theirs.succeeded, theirs.revision - offset)
        left, right = await memory.get_prefix(root), await etcd.get_prefix(root)
        assert [relative(kv, 0) for kv in left.kvs] == [relative(kv, offset) for kv in right.kvs]
        old = rng.randrange(2, left.revision + 1)
        then, there = (
            await memory.get_prefix(root, revision=old),
            await etcd.get_prefix(root, revision=old + offset),
        )
        assert [relative(kv, 0) for kv in then.kvs] == [relative(kv, offset) for kv in there.kvs]
    await memory.close()
    await etcd.close()


def _random_ops(rng: random.Random, keys: list[str], root: str, step: int) -> list[Op]:
    chosen = rng.sample(keys, rng.randrange(4))
    ops = [rng.choice([put_op(key, f"{step}"), delete_op(key), get_op(key)]) for key in chosen]
    return [delete_prefix_op(f"{root}a")] if rng.random() < 0.1 else ops


# leases


async def test_a_started_lease_outlives_its_time_and_its_keys_go_when_it_stops(
    store: Store, root: str
) -> None:
    lease = await store.lease(2)
    assert lease.ttl_s >= 2
    lease.start()
    await store.put(f"{root}a", "1", lease=lease.id)
    await asyncio.sleep(lease.ttl_s + 1.0)
    kv = await store.get(f"{root}a")
    assert kv is not None and kv.lease == lease.id
    assert not lease.lost.is_set()
    await lease.stop()
    assert lease.lost.is_set()

    async def gone() -> bool:
        return await store.get(f"{root}a") is None

    await eventually(gone)


async def test_expiry_is_seen_by_a_watch(store: Store, root: str) -> None:
    lease = await store.lease(1)
    await store.put(f"{root}a", "1", lease=lease.id)
    await store.put(f"{root}b", "1", lease=lease.id)
    async with store.watch_prefix(root) as watch:
        await watch.ready()
        assert sorted(await take(watch, 2)) == [
            (EventType.DELETE, f"{root}a", b""),
            (EventType.DELETE, f"{root}b", b""),
        ]


async def test_revoking_a_lease_deletes_its_keys_at_once_and_only_those(
    store: Store, root: str
) -> None:
    lease = await store.lease(60)
    lease.start()
    await store.put(f"{root}held", "1", lease=lease.id)
    await store.put(f"{root}free", "1")
    await store.put(f"{root}detached", "1", lease=lease.id)
    await store.put(f"{root}detached", "2")
    await lease.revoke()
    assert lease.lost.is_set()
    names = [kv.key.removeprefix(root) for kv in (await store.get_prefix(root)).kvs]
    assert names == ["detached", "free"]
    await lease.revoke()  # once more is no error


async def test_a_lease_that_was_revoked_elsewhere_is_lost_and_refuses_keys(
    store: Store, root: str
) -> None:
    lease = await store.lease(1)
    lease.start()
    await lease._driver.revoke(lease.id)  # as another client would
    async with asyncio.timeout(LIMIT_S):
        await lease.lost.wait()
    with pytest.raises(LeaseLostError):
        await store.put(f"{root}a", "1", lease=lease.id)
    with pytest.raises(LeaseLostError):
        await store.transaction([], [put_op(f"{root}a", "1", lease.id)])
    assert await store.get(f"{root}a") is None


# watches


async def test_a_watch_delivers_changes_in_order_and_whole_revisions(
    store: Store, root: str
) -> None:
    await store.put(f"{root}before", "0")
    async with store.watch_prefix(root) as watch:
        start = await watch.ready()
        await store.put(f"{root}a", "1")
        await store.transaction([], [put_op(f"{root}b", "2"), delete_op(f"{root}a")])
        await store.put(f"{root[:-1]}x", "of another prefix")
        await store.put(f"{root}c", "3")
        batches = await take_until(watch, lambda batch: batch.events[-1].kv.key == f"{root}c")
    events = [event for batch in batches for event in batch.events]
    assert [(e.type, e.kv.key.removeprefix(root), e.kv.mod_revision - start) for e in events] == [
        (EventType.PUT, "a", 1),
        (EventType.PUT, "b", 2),
        (EventType.DELETE, "a", 2),
        (EventType.PUT, "c", 4),
    ]
    assert [batch.revision for batch in batches] == [b.events[-1].kv.mod_revision for b in batches]
    assert len({event.kv.mod_revision for event in events}) == 3


async def test_a_watch_replays_from_a_revision(store: Store, root: str) -> None:
    await store.put(f"{root}a", "1")
    second = await store.put(f"{root}a", "2")
    await store.delete(f"{root}a")
    async with store.watch_prefix(root, start_revision=second) as watch:
        assert await take(watch, 2) == [
            (EventType.PUT, f"{root}a", b"2"),
            (EventType.DELETE, f"{root}a", b""),
        ]


async def test_a_cancelled_reader_loses_nothing(store: Store, root: str) -> None:
    async with store.watch_prefix(root) as watch:
        await watch.ready()
        seen: list[str] = []
        for index in range(20):
            await store.put(f"{root}a", str(index))
            try:
                batch = await asyncio.wait_for(anext(watch), 0.001 * (index % 4))
                seen += [event.kv.text for event in batch.events]
            except TimeoutError:
                pass
        while len(seen) < 20:
            seen += [value.decode() for _, _, value in await take(watch, 1)]
    assert seen == [str(index) for index in range(20)]


async def test_a_slow_reader_gets_everything(store: Store, root: str) -> None:
    """16 MiB wait on the server, not here: the stream is read only while a reader waits."""
    async with store.watch_prefix(root) as watch:
        await watch.ready()
        for index in range(64):
            await store.put(f"{root}a", f"{index:08}" * (256 * 1024 // 8))
        seen = await take(watch, 64)
    assert [value[:8] for _, _, value in seen] == [f"{index:08}".encode() for index in range(64)]


async def test_closing_a_watch_ends_its_waiting_reader(store: Store, root: str) -> None:
    watch = store.watch_prefix(root)
    reader = asyncio.create_task(take_until(watch, lambda _: True))
    await watch.ready()
    await asyncio.sleep(0.05)
    await watch.aclose()
    await watch.aclose()
    with pytest.raises(AssertionError, match="the watch ended"):
        await reader


async def test_a_watch_goes_on_where_it_was_after_an_interruption(
    backend: Backend, root: str
) -> None:
    """A writer goes on through a SIGKILL and a restart; a second watch replays what was written."""
    start = await backend.store.put(f"{root}start", "")
    stop = asyncio.Event()
    writer = asyncio.create_task(_write_on(backend.store, root, stop))
    async with backend.store.watch_prefix(root, start_revision=start + 1) as watch:
        batches = await take_until(watch, lambda b: b.revision >= start + 20)
        await backend.interrupt()
        batches += await take_until(watch, lambda b: b.revision >= start + 60)
        stop.set()
        await writer
        last = await backend.store.put(f"{root}last", "")
        if batches[-1].revision < last:
            batches += await take_until(watch, lambda b: b.revision == last)
    async with backend.store.watch_prefix(root, start_revision=start + 1) as replay:
        expected = await take_until(replay, lambda b: b.revision == last)
    events = [event for batch in batches for event in batch.events]
    assert events == [event for batch in expected for event in batch.events]
    assert not any(batch.reset for batch in batches)
    assert [e.kv.mod_revision for e in events] == list(range(start + 1, last + 1))


async def _write_on(store: Store, root: str, stop: asyncio.Event) -> None:
    count = 0
    while not stop.is_set():
        try:
            await store.put(f"{root}{count % 7}", str(count))
        except StoreAmbiguousError:
            kv = await store.get(f"{root}{count % 7}")
            if kv is None or kv.text != str(count):
                continue
        except StoreUnavailableError:
            continue
        count += 1
        await asyncio.sleep(0.002)


# compaction


async def test_compacted_revisions_are_refused_and_the_oldest_kept_is_named(
    store: Store, root: str
) -> None:
    first = await store.put(f"{root}a", "1")
    await store.put(f"{root}a", "2")
    last = await store.put(f"{root}a", "3")
    await store.compact(last)
    with pytest.raises(CompactedError) as caught:
        await store.get_prefix(root, revision=first)
    assert caught.value.compact_revision == last
    assert [kv.text for kv in (await store.get_prefix(root, revision=last)).kvs] == ["3"]
    with pytest.raises(CompactedError):
        await store.compact(first)
    with pytest.raises(StoreError, match="future"):
        await store.compact(last + 1000)


async def test_a_watch_from_a_compacted_revision_begins_with_a_reset(
    store: Store, root: str
) -> None:
    first = await store.put(f"{root}a", "1")
    await store.put(f"{root}b", "2")
    last = await store.put(f"{root}a", "3")
    await store.compact(last)
    async with store.watch_prefix(root, start_revision=first) as watch:
        (batch,) = await take_until(watch, lambda _: True)
        assert batch.reset
        assert [event.kv for event in batch.events] == (await store.get_prefix(root)).kvs
        await store.put(f"{root}c", "4")
        assert await take(watch, 1) == [(EventType.PUT, f"{root}c", b"4")]


async def test_a_watch_that_was_away_during_a_compaction_gets_what_is_and_what_went(
    backend: Backend, root: str
) -> None:
    store = backend.store
    for name in ("before", "kept", "gone"):
        await store.put(root + name, "1")
    async with store.watch_prefix(root) as watch:
        await watch.ready()
        await store.put(f"{root}seen", "1")
        assert await take(watch, 1) == [(EventType.PUT, f"{root}seen", b"1")]
        await backend.interrupt()
        await store.delete_prefix(f"{root}gone")
        await store.delete(f"{root}seen")
        await store.put(f"{root}kept", "2")
        last = await store.put(f"{root}new", "1")
        await store.compact(last)
        (batch,) = await take_until(watch, lambda _: True)
        assert batch.reset and batch.revision == last
        by_key = {event.kv.key.removeprefix(root): event for event in batch.events}
        assert {name: event.type for name, event in by_key.items()} == {
            "before": EventType.PUT,
            "kept": EventType.PUT,
            "new": EventType.PUT,
            "gone": EventType.DELETE,
            "seen": EventType.DELETE,
        }
        assert by_key["kept"].kv.text == "2"
        await store.put(f"{root}after", "1")
        assert await take(watch, 1) == [(EventType.PUT, f"{root}after", b"1")]


async def test_a_deletion_at_the_very_revision_that_is_compacted_is_not_lost(
    backend: Backend, root: str
) -> None:
    """etcd 3.5.1 forgets such a deletion; only a watch that asks for one revision less is told."""
    store = backend.store
    async with store.watch_prefix(root) as watch:
        await watch.ready()
        await store.put(f"{root}a", "1")
        await take(watch, 1)
        await backend.interrupt()
        deleted = (await store.transaction([], [delete_op(f"{root}a")])).revision
        await store.compact(deleted)
        (batch,) = await take_until(watch, lambda _: True)
        assert [(event.type, event.kv.key) for event in batch.events] == [
            (EventType.DELETE, f"{root}a")
        ]


async def test_a_followed_prefix_equals_the_store_through_interruption_and_compaction(
    backend: Backend, root: str
) -> None:
    store, view = backend.store, dict[str, KeyValue]()
    rng = random.Random(3)
    await store.put(f"{root}k0", "first")
    async with aclosing(follow_prefix(store, root)) as batches:

        async def caught_up(revision: int) -> None:
            async with asyncio.timeout(LIMIT_S):
                async for batch in batches:
                    apply_batch(view, batch)
                    if batch.revision >= revision:
                        return

        await caught_up(0)
        for round_number in range(3):
            for _ in range(15):
                key = f"{root}k{rng.randrange(6)}"
                if not (rng.random() < 0.3 and await store.delete(key)):
                    await store.put(key, str(rng.random()))
            last = await store.put(f"{root}round", str(round_number))
            if round_number == 1:
                await backend.interrupt()
                await store.compact(last)
            await caught_up(last)
            assert (
                sorted(view.values(), key=lambda kv: kv.key) == (await store.get_prefix(root)).kvs
            )


# leadership


async def test_of_two_campaigners_one_leads_and_the_replaced_one_is_fenced_off(
    store: Store, root: str
) -> None:
    first_lease, second_lease = await store.lease(2), await store.lease(60)
    first_lease.start()
    first = await store.campaign(f"{root}leader", "first", first_lease)
    waiting = asyncio.create_task(store.campaign(f"{root}leader", "second", second_lease))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    write = [put_op(f"{root}work", "by the first")]
    assert (await store.transaction([first.fence], write)).succeeded
    await first_lease.stop()  # the first hangs: its lease expires
    async with asyncio.timeout(LIMIT_S):
        second = await waiting
    assert not (await store.transaction([first.fence], write)).succeeded
    assert (await store.transaction([second.fence], write)).succeeded
    await first.resign()  # too late: it must not take the key from the second
    kv = await store.get(f"{root}leader")
    assert kv is not None and kv.text == "second"
    await second.resign()
    assert await store.get(f"{root}leader") is None
    await second_lease.revoke()


async def test_a_campaign_ends_when_its_lease_is_lost(store: Store, root: str) -> None:
    holder, waiter = await store.lease(60), await store.lease(60)
    await store.campaign(f"{root}leader", "holder", holder)
    waiting = asyncio.create_task(store.campaign(f"{root}leader", "waiter", waiter))
    await asyncio.sleep(0.1)
    await waiter.revoke()
    with pytest.raises(LeaseLostError, match="campaigning"):
        await asyncio.wait_for(waiting, LIMIT_S)
    await holder.revoke()


async def test_campaigning_again_with_the_lease_that_leads_finds_itself_leading(
    store: Store, root: str
) -> None:
    """So an answer that was lost on the way costs nothing."""
    lease = await store.lease(60)
    first = await store.campaign(f"{root}leader", "x", lease)
    again = await store.campaign(f"{root}leader", "x", lease)
    assert first.fence == again.fence
    await lease.revoke()


async def test_a_lock_is_held_by_one_at_a_time(store: Store, root: str) -> None:
    inside, most = 0, 0

    async def work() -> None:
        nonlocal inside, most
        lease = await store.lease(60)
        for _ in range(3):
            async with await store.lock(f"{root}lock", lease):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.005)
                inside -= 1
        await lease.revoke()

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(work() for _ in range(4)))
    assert most == 1


# closing, and what only a server can do to its client


async def test_closing_ends_watches_campaigns_and_keep_alives(backend: Backend, root: str) -> None:
    store = backend.store
    holder, waiter = await store.lease(5), await store.lease(5)
    holder.start()
    waiter.start()
    await store.campaign(f"{root}leader", "holder", holder)
    campaign = asyncio.create_task(store.campaign(f"{root}leader", "waiter", waiter))
    reader = asyncio.create_task(take_until(store.watch_prefix(root), lambda _: False))
    await asyncio.sleep(0.1)
    await store.close()
    await store.close()
    for task in (campaign, reader):
        with pytest.raises((AssertionError, StoreError)):
            await asyncio.wait_for(task, LIMIT_S)
    assert holder.lost.is_set() and waiter.lost.is_set()
    with pytest.raises(StoreError, match="closed"):
        await store.get(f"{root}a")
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()


def test_a_store_made_outside_a_loop_works_in_one(server: EtcdServer, root: str) -> None:
    store = EtcdStore([server.etcd.endpoint])

    async def use() -> KeyValue | None:
        await store.put(f"{root}a", "1")
        kv = await store.get(f"{root}a")
        await store.close()
        return kv

    kv = asyncio.run(use())
    assert kv is not None and kv.text == "1"


async def test_a_server_that_was_never_there_is_unavailable_within_the_deadline(root: str) -> None:
    store = EtcdStore([f"127.0.0.1:{_free_ports(1)[0]}"], deadline_s=0.3)
    for attempt in (store.get("a"), store.put("a", "1"), store.lease(5), store.get_prefix("a")):
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(StoreUnavailableError, match="no connection"):
                await attempt
    await store.close()


async def test_a_dead_endpoint_does_not_matter_when_another_answers(
    server: EtcdServer, root: str
) -> None:
    store = EtcdStore([f"127.0.0.1:{_free_ports(1)[0]}", f"http://{server.etcd.endpoint}"])
    await store.put(f"{root}a", "1")
    async with store.watch_prefix(root) as watch:
        await watch.ready()
        await store.put(f"{root}a", "2")
        assert await take(watch, 1) == [(EventType.PUT, f"{root}a", b"2")]
    await store.close()


async def test_a_frozen_server_costs_one_deadline_and_a_write_to_it_is_ambiguous(
    server: EtcdServer, root: str
) -> None:
    store = EtcdStore([server.etcd.endpoint], deadline_s=0.8)
    await store.put(f"{root}a", "before")
    server.pause()
    try:
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(StoreUnavailableError):
                await store.get(f"{root}a")
            with pytest.raises(StoreAmbiguousError):
                await store.put(f"{root}a", "during")
            with pytest.raises(StoreAmbiguousError):
                await store.transaction([], [put_op(f"{root}b", "during")])
    finally:
        server.resume()

    async def answers() -> bool:
        try:
            return (await store.get(f"{root}a")) is not None
        except StoreUnavailableError:
            return False

    await eventually(answers)
    kv = await store.get(f"{root}a")
    assert kv is not None and kv.text in ("before", "during")
    await store.close()


async def test_a_lease_that_could_not_be_renewed_is_given_up_in_time(
    server: EtcdServer, root: str
) -> None:
    """The holder stops first: when the server lets the keys go, nobody acts on them any more."""
    store = EtcdStore([server.etcd.endpoint], deadline_s=3.0)
    lease = await store.lease(1)
    lease.start()
    await store.put(f"{root}a", "1", lease=lease.id)
    server.pause()
    try:
        async with asyncio.timeout(LIMIT_S):
            await lease.lost.wait()
    finally:
        server.resume()
    await store.close()


async def test_closing_does_not_wait_for_a_frozen_server(server: EtcdServer, root: str) -> None:
    store = EtcdStore([server.etcd.endpoint], deadline_s=60)
    await store.put(f"{root}a", "1")
    server.pause()
    try:
        reading = asyncio.create_task(store.get(f"{root}a"))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(store.close(), LIMIT_S)
        with pytest.raises(StoreError, match="closed"):
            await asyncio.wait_for(reading, LIMIT_S)
    finally:
        server.resume()


async def test_a_lease_survives_a_restart_that_is_shorter_than_it(
    server: EtcdServer, root: str
) -> None:
    store = EtcdStore([server.etcd.endpoint])
    lease = await store.lease(6)
    lease.start()
    await store.put(f"{root}a", "1", lease=lease.id)
    await server.restart()
    await asyncio.sleep(lease.ttl_s / 3 + 1)
    assert not lease.lost.is_set()
    assert await store.get(f"{root}a") is not None
    await lease.revoke()
    await store.close()


async def test_a_campaign_waits_out_a_restart(server: EtcdServer, root: str) -> None:
    store = EtcdStore([server.etcd.endpoint])
    holder, waiter = await store.lease(60), await store.lease(60)
    leader = await store.campaign(f"{root}leader", "holder", holder)
    waiting = asyncio.create_task(store.campaign(f"{root}leader", "waiter", waiter))
    await asyncio.sleep(0.1)
    await server.restart()
    await leader.resign()
    async with asyncio.timeout(LIMIT_S):
        second = await waiting
    assert (await store.transaction([second.fence], [])).succeeded
    await store.close()


async def test_a_watch_starts_over_when_the_history_of_the_server_is_another(
    tmp_path: Path, root: str
) -> None:
    """A wiped data directory: revisions begin again, and what was there is gone."""
    server = EtcdServer(tmp_path)
    store = EtcdStore([server.etcd.endpoint])
    try:
        await server.etcd.wait_healthy()
        for index in range(30):
            await store.put(f"{root}a", str(index))
        async with store.watch_prefix(root) as watch:
            await watch.ready()
            await store.put(f"{root}b", "1")
            await take(watch, 1)
            server.kill()
            server.etcd.data_dir.rename(tmp_path / "lost")
            server.start()
            await server.etcd.wait_healthy()
            await store.put(f"{root}c", "1")
            (batch,) = await take_until(watch, lambda _: True)
            assert batch.reset
            assert sorted((e.type, e.kv.key.removeprefix(root)) for e in batch.events) == [
                (EventType.DELETE, "a"),
                (EventType.DELETE, "b"),
                (EventType.PUT, "c"),
            ]
    finally:
        await store.close()
        server.kill()
