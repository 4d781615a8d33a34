"""What only a real server can do to its client: die, freeze, restart, forget."""

import asyncio
from pathlib import Path

import pytest
from store_backends import LIMIT_S, Backend, EtcdServer, eventually, free_ports, take, take_until

from moectl.core.errors import (
    StoreAmbiguousError,
    StoreError,
    StoreUnavailableError,
)
from moectl.core.store.etcd import EtcdStore
from moectl.core.store.protocol import (
    EventType,
    KeyValue,
    put_op,
)

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

    async def only_this_task_is_left() -> bool:
        return len(asyncio.all_tasks()) == 1

    await eventually(only_this_task_is_left)  # grpc ends the tasks of cancelled calls a bit later


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
    store = EtcdStore([f"127.0.0.1:{free_ports(1)[0]}"], deadline_s=0.3)
    for attempt in (store.get("a"), store.put("a", "1"), store.lease(5), store.get_prefix("a")):
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(StoreUnavailableError, match="no connection"):
                await attempt
    await store.close()


async def test_a_dead_endpoint_does_not_matter_when_another_answers(
    server: EtcdServer, root: str
) -> None:
    store = EtcdStore([f"127.0.0.1:{free_ports(1)[0]}", f"http://{server.etcd.endpoint}"])
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
