"""Watches, compaction and leadership, by the same contract: nothing lost, nothing twice."""

import asyncio
import random
from contextlib import aclosing

import pytest
from store_backends import LIMIT_S, Backend, take, take_until

from moectl.core.errors import (
    CompactedError,
    LeaseLostError,
    StoreAmbiguousError,
    StoreError,
    StoreUnavailableError,
)
from moectl.core.store.follow import apply_batch, follow_prefix
from moectl.core.store.protocol import (
    EventType,
    KeyValue,
    Store,
    delete_op,
    put_op,
)

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
