"""The mirror equals the store, whatever happens to the watch and to single records."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from moectl.controller.commit import Committer
from moectl.controller.decision import Draft
from moectl.controller.observe import Mirror
from moectl.core.clock import SystemClock
from moectl.core.plan import DeviceId
from moectl.core.records import Keys, NodeRecord, SpecRecord, WorkerRecord, to_json
from moectl.core.store.memory import MemoryStore
from moectl.core.transitions import WorkerState

KEYS = Keys("test")
NODE = NodeRecord("n1", "127.0.0.1", (), "127.0.0.1:1", 1, 0.0)
SPEC = SpecRecord("Model", "chat", 1, {}, "op", 0.0, "ann")


@pytest.fixture
async def parts() -> AsyncIterator[tuple[MemoryStore, Mirror]]:
    clock = SystemClock()
    store = MemoryStore(clock)
    mirror = Mirror(store, KEYS, clock)
    following = asyncio.create_task(mirror.run())
    yield store, mirror
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    await store.close()


async def test_it_shows_records_with_the_revision_that_a_write_must_name(parts) -> None:
    store, mirror = parts
    revision = await store.put(KEYS.spec("Model", "chat"), to_json(SPEC))
    assert await mirror.reach(revision, 5)
    seen = mirror.snapshot().model_spec("chat")
    assert (seen.value, seen.mod_revision) == (SPEC, revision)


async def test_a_snapshot_does_not_change_when_the_store_does(parts) -> None:
    store, mirror = parts
    await mirror.reach(await store.put(KEYS.node("n1"), to_json(NODE)), 5)
    snapshot = mirror.snapshot()
    await store.delete(KEYS.node("n1"))
    await mirror.reach(mirror.revision + 1, 5)
    assert "n1" in snapshot.nodes
    assert "n1" not in mirror.snapshot().nodes


async def test_one_unreadable_record_hides_only_itself(parts) -> None:
    store, mirror = parts
    await store.put(KEYS.node("n1"), to_json(NODE))
    await mirror.reach(await store.put(KEYS.node("n2"), '{"name":"n2","new_field":1}'), 5)
    assert set(mirror.snapshot().nodes) == {"n1"}
    assert list(mirror.unreadable) == [KEYS.node("n2")]
    await mirror.reach(await store.put(KEYS.node("n2"), to_json(NODE)), 5)
    assert mirror.unreadable == {}


async def test_it_is_true_again_after_a_compaction_it_slept_through() -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    mirror = Mirror(store, KEYS, clock)
    await store.put(KEYS.node("old"), to_json(NODE))
    following = asyncio.create_task(mirror.run())
    await mirror.reach(2, 5)
    for number in range(5):  # no await in between that would let the watch run
        await store.put(KEYS.node(f"n{number}"), to_json(NODE))
    await store.delete(KEYS.node("old"))
    last = await store.put(KEYS.node("n9"), to_json(NODE))
    await store.compact(last)
    assert await mirror.reach(last, 5)
    assert set(mirror.snapshot().nodes) == {"n0", "n1", "n2", "n3", "n4", "n9"}
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await store.close()


async def test_statistics_do_not_wake_the_loop_and_workers_do(parts) -> None:
    store, mirror = parts
    await mirror.reach(await store.put(KEYS.node("n1"), to_json(NODE)), 5)
    before = mirror.control_version
    await mirror.reach(await store.put(KEYS.event("e"), "not read"), 5)
    assert mirror.control_version == before
    worker = WorkerRecord("chat", 0, DeviceId("n1", "d0"), 1, 1, WorkerState.SERVING, "a:1", 1)
    key = KEYS.worker("chat", worker.device)
    await mirror.reach(await store.put(key, to_json(worker)), 5)
    assert mirror.control_version == before + 1
    assert mirror.snapshot().workers["chat"] == {worker.device: worker}


async def test_a_change_is_committed_whole_or_not_at_all(parts) -> None:
    store, _ = parts
    committer = Committer(store, KEYS, SystemClock())
    revision = await store.put(KEYS.spec("Model", "chat"), to_json(SPEC))
    stale = Draft("model/chat", "Test").guard(KEYS.spec("Model", "chat"), revision - 1)
    stale.put(KEYS.placement("chat"), "x").tell(1.0, "info", "never")
    assert not (await committer.commit(stale.done())).succeeded
    assert await store.get(KEYS.placement("chat")) is None
    assert (await store.get_prefix(KEYS.events)).kvs == []
    right = Draft("model/chat", "Test").guard(KEYS.spec("Model", "chat"), revision)
    right.put(KEYS.placement("chat"), "x").tell(1.0, "info", "now")
    assert (await committer.commit(right.done())).succeeded
    (event,) = (await store.get_prefix(KEYS.events)).kvs
    assert event.lease  # events die by themselves
