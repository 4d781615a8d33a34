"""What only the memory store can be asked: leases in simulated time, and a bounded history."""

import asyncio

import pytest

from moectl.core.clock import SimClock
from moectl.core.errors import LeaseLostError, StoreUnavailableError
from moectl.core.store import memory
from moectl.core.store.lease import Lease
from moectl.core.store.memory import MemoryStore


async def test_a_lease_lives_while_it_is_renewed_and_dies_on_time_when_it_is_not() -> None:
    clock = SimClock()
    store = MemoryStore(clock)
    kept, left = await store.lease(6), await store.lease(6)
    kept.start()
    await store.put("kept", "1", lease=kept.id)
    await store.put("left", "1", lease=left.id)
    await clock.advance(5.9)
    assert await store.get("left") is not None
    await clock.advance(0.1)
    assert await store.get("left") is None
    await clock.advance(3600)
    assert await store.get("kept") is not None
    await kept.stop()
    await clock.advance(6)
    assert await store.get("kept") is None
    await store.close()


async def test_a_watch_sees_an_expiry_without_anybody_calling_the_store() -> None:
    clock = SimClock()
    store = MemoryStore(clock)
    lease = await store.lease(6)
    await store.put("a", "1", lease=lease.id)
    watch = store.watch_prefix("a")
    await watch.ready()
    reader = asyncio.create_task(anext(watch))
    await clock.advance(6)
    assert reader.done() and reader.result().events[0].type == "delete"
    await store.close()


class FlakyDriver:
    """Fails as often as told; counts what it was asked."""

    def __init__(self, failures: int, ttl_s: float) -> None:
        self.failures, self.ttl_s, self.asked, self.released = failures, ttl_s, 0, 0

    async def renew(self, lease_id: int, timeout_s: float) -> float:
        self.asked += 1
        if self.asked <= self.failures:
            raise StoreUnavailableError("away")
        return self.ttl_s

    async def revoke(self, lease_id: int) -> None:
        pass

    def release(self) -> None:
        self.released += 1


async def test_a_failed_renewal_is_tried_again_before_the_time_is_over() -> None:
    clock, driver = SimClock(), FlakyDriver(failures=4, ttl_s=6)
    lease = Lease(1, 6.0, clock.monotonic(), clock, driver)
    lease.start()
    await clock.advance(5.9)
    assert driver.asked >= 5 and not lease.lost.is_set()
    await clock.advance(60)
    assert not lease.lost.is_set()
    await lease.stop()
    assert driver.released == 1


async def test_a_lease_that_nobody_answers_for_is_lost_at_its_end_and_not_later() -> None:
    clock, driver = SimClock(), FlakyDriver(failures=10**9, ttl_s=6)
    lease = Lease(1, 6.0, clock.monotonic() - 1.0, clock, driver)  # the grant took a second
    lease.start()
    await clock.advance(4.9)
    assert not lease.lost.is_set()
    await clock.advance(0.2)
    assert lease.lost.is_set() and driver.released == 1
    await lease.stop()


async def test_an_unknown_lease_is_refused() -> None:
    store = MemoryStore(SimClock())
    with pytest.raises(LeaseLostError):
        await store.put("a", "1", lease=77)
    await store.close()


async def test_the_history_is_bounded_and_a_reader_that_was_passed_gets_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "HISTORY_EVENTS_MAX", 100)
    store = MemoryStore(SimClock())
    async with store.watch_prefix("a") as watch:
        await watch.ready()
        for index in range(1000):
            await store.put("a", str(index))
            assert store._history.event_count <= 101
        batch = await anext(watch)
        assert batch.reset and batch.events[-1].kv.text == "999"
    await store.close()
