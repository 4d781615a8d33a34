"""Do both stores keep the contract of `core.store.protocol`? The same claims, memory and etcd.

One real etcd runs for the whole file. `backend.interrupt()` breaks every stream: SIGKILL and a
restart on the same data for etcd, nothing for memory, whose watch reads history directly.
"""

import asyncio
import itertools
import random

import pytest
from store_backends import LIMIT_S, EtcdServer, eventually, take

from moectl.core.clock import SystemClock
from moectl.core.errors import (
    LeaseLostError,
    StoreError,
)
from moectl.core.store.etcd import EtcdStore
from moectl.core.store.memory import MemoryStore
from moectl.core.store.protocol import (
    EventType,
    KeyValue,
    Op,
    Store,
    create_revision_is,
    delete_op,
    delete_prefix_op,
    get_op,
    mod_revision_is,
    put_op,
    value_is,
    version_is,
)

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
