"""Records stay in the store through lease loss and outages, and nothing grows meanwhile."""

import asyncio
import contextlib

from moectl.agents.events import WAITING_MAX, EventLog
from moectl.agents.follow import follow
from moectl.agents.publish import Publisher
from moectl.core.clock import SystemClock
from moectl.core.errors import StoreUnavailableError
from moectl.core.records import EventRecord, Keys, from_json
from moectl.core.store.memory import MemoryStore
from moectl.core.store.protocol import TRANSACTION_OPS_MAX, VALUE_BYTES_MAX, OpKind


class Outage(MemoryStore):
    """The real store with a switch: while it is away every call fails as etcd's would."""

    def __init__(self):
        super().__init__(SystemClock())
        self.is_away = False
        self.puts = []
        self.transactions = []

    def _check(self):
        if self.is_away:
            raise StoreUnavailableError("away")

    async def put(self, key, value, *, lease=0):
        self._check()
        self.puts.append(key)
        return await super().put(key, value, lease=lease)

    async def delete(self, key):
        self._check()
        return await super().delete(key)

    async def transaction(self, compare, success, failure=()):
        self._check()
        self.transactions.append([op.key for op in success])
        self.puts += [op.key for op in success if op.kind is OpKind.PUT]
        return await super().transaction(compare, success, failure)

    async def lease(self, ttl_s):
        self._check()
        return await super().lease(ttl_s)

    async def get_prefix(self, prefix, *, revision=0):
        self._check()
        return await super().get_prefix(prefix, revision=revision)


@contextlib.asynccontextmanager
async def running(*works):
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  (the store is what is waited for)
            await asyncio.sleep(0.01)


async def test_records_are_written_once_and_changes_again():
    store = Outage()
    publisher = Publisher(store, 5.0)
    async with running(publisher.run()):
        publisher.put("/a", "1")
        publisher.put("/b", "2", leased=False)
        assert await publisher.flush(5)
        publisher.put("/a", "1")
        assert await publisher.flush(5)
        assert store.puts == ["/a", "/b"]
        assert (await store.get("/a")).lease != 0 and (await store.get("/b")).lease == 0
        publisher.delete("/a")
        assert await publisher.flush(5)
        assert await store.get("/a") is None
        await publisher.close()


async def test_what_changes_together_is_written_in_one_transaction():
    store = Outage()
    publisher = Publisher(store, 5.0)
    publisher.put("/gone", "1")
    async with running(publisher.run()):
        assert await publisher.flush(5)
        before = (await store.get_prefix("/")).revision
        for key in ("/a", "/b", "/c"):
            publisher.put(key, key, leased=key != "/b")
        publisher.delete("/gone")
        assert await publisher.flush(5)
        assert store.transactions[1:] == [["/a", "/b", "/c", "/gone"]]
        found = await store.get_prefix("/")
        assert found.revision == before + 1
        assert [(kv.key, kv.lease != 0) for kv in found.kvs] == [
            ("/a", True),
            ("/b", False),
            ("/c", True),
        ]
        await publisher.close()


async def test_no_transaction_is_larger_than_a_store_takes():
    store = Outage()
    publisher = Publisher(store, 5.0)
    for number in range(2 * TRANSACTION_OPS_MAX + 1):
        publisher.put(f"/many/{number}", "1")
    for number in range(4):
        publisher.put(f"/large/{number}", b"x" * (VALUE_BYTES_MAX - 1))
    async with running(publisher.run()):
        assert await publisher.flush(10)
    assert max(map(len, store.transactions)) <= TRANSACTION_OPS_MAX
    assert sum(map(len, store.transactions)) == 2 * TRANSACTION_OPS_MAX + 5
    assert [len(keys) for keys in store.transactions if "/large/1" in keys] == [1]
    await publisher.close()


async def test_after_a_lost_lease_everything_is_registered_again():
    store = Outage()
    publisher = Publisher(store, 5.0)
    async with running(publisher.run()):
        publisher.put("/a", "1")
        publisher.put("/b", "2")
        assert await publisher.flush(5)
        await publisher._lease.revoke()

        async def both_back():
            return len((await store.get_prefix("/")).kvs) == 2

        await until(both_back)
        await publisher.close()
        assert not (await store.get_prefix("/")).kvs


async def test_with_the_store_away_only_the_last_value_of_a_key_is_kept():
    store = Outage()
    store.is_away = True
    publisher = Publisher(store, 5.0)
    async with running(publisher.run()):
        for value in range(1000):
            publisher.put("/a", str(value))
        assert not await publisher.flush(0.05)
        store.is_away = False
        assert await publisher.flush(5)
        assert store.puts == ["/a"] and (await store.get("/a")).value == b"999"
        await publisher.close()


async def test_events_wait_for_the_store_and_the_oldest_are_dropped():
    store = Outage()
    store.is_away = True
    keys = Keys("test")
    events = EventLog(store, keys, "agent.n1", SystemClock())
    async with running(events.run()):
        for number in range(WAITING_MAX + 10):
            events.tell("info", "node/n1", "Tested", f"event {number}")
        store.is_away = False

        async def all_there():
            return len((await store.get_prefix(keys.events)).kvs) == WAITING_MAX

        await until(all_there)
        found = [
            from_json(EventRecord, kv.value) for kv in (await store.get_prefix(keys.events)).kvs
        ]
    messages = {event.message for event in found}
    assert "event 9" not in messages and f"event {WAITING_MAX + 9}" in messages


async def test_following_starts_when_the_store_comes_and_misses_nothing():
    store = Outage()
    await store.put("/x/1", "a")
    store.is_away = True
    seen, batches = {}, []

    def apply(key, value):
        seen[key] = value

    async with running(follow(store, "/x/", apply, on_batch=lambda: batches.append(len(seen)))):
        await asyncio.sleep(0.05)
        store.is_away = False

        async def listed():
            return bool(batches)

        await until(listed)
        await store.put("/x/2", "b")
        await store.delete("/x/1")

        async def settled():
            return seen == {"/x/1": None, "/x/2": b"b"}

        await until(settled)
