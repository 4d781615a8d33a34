"""Does the store keep its promises on a real cluster of three, with members killed and frozen?

MOECTL_WATCH_CHANGES sets how many changes the watch must survive: 3,000 here, 100,000 in
`make soak`, which prints what it counted.
"""

import asyncio
import dataclasses
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from etcd_cluster import EtcdCluster, etcdctl, make_certificates

from moectl.core.errors import (
    AuthError,
    RefusedError,
    StoreAmbiguousError,
    StoreError,
    StoreQuotaError,
    StoreUnavailableError,
    UsageError,
)
from moectl.core.store.etcd import EtcdStore, ServerStatus
from moectl.core.store.protocol import EventType, put_op
from moectl.core.store.security import EtcdSecurity, parse_endpoints

CHANGES = int(os.environ.get("MOECTL_WATCH_CHANGES", "3000"))


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    made = EtcdCluster(tmp_path)
    try:
        await made.wait_healthy()
        yield made
    finally:
        made.stop()


async def eventually(store: EtcdStore, key: str, value: bytes, limit_s: float = 20.0) -> None:
    """Put until it is there: what a caller does with an unanswered write is to read it back."""
    end = time.monotonic() + limit_s
    while True:
        try:
            await store.put(key, value)
            return
        except (StoreUnavailableError, StoreAmbiguousError):
            assert time.monotonic() < end
            try:
                seen = await store.get(key)
            except StoreUnavailableError:
                continue
            if seen is not None and seen.value == value:
                return


async def test_the_leader_killed_or_frozen_costs_one_deadline_at_most(
    cluster: EtcdCluster,
) -> None:
    store = cluster.store(deadline_s=4.0)
    try:
        await store.put("/t/a", b"0")
        leader = await cluster.leader()
        leader.kill()
        await eventually(store, "/t/a", b"1")
        assert (await store.get("/t/a")).value == b"1"  # type: ignore[union-attr]
        leader.start()
        await cluster.wait_healthy()
        frozen = await cluster.leader()
        frozen.pause()
        started = time.monotonic()
        await eventually(store, "/t/a", b"2")
        assert (await store.get("/t/a")).value == b"2"  # type: ignore[union-attr]
        assert time.monotonic() - started < 2 * 4.0 + 2
        frozen.resume()
    finally:
        await store.close()


async def test_without_a_majority_a_write_surely_did_not_happen_and_later_ones_do(
    cluster: EtcdCluster,
) -> None:
    store = cluster.store(deadline_s=3.0)
    try:
        await store.put("/t/a", b"0")
        stopped = cluster.members[1:]
        for member in stopped:
            member.kill()
        await cluster.without_leader(0)
        with pytest.raises(StoreUnavailableError):
            await store.put("/t/a", b"1")
        for member in stopped:
            member.start()
        await cluster.wait_healthy()
        assert (await store.get("/t/a")).value == b"0"  # type: ignore[union-attr]
        await eventually(store, "/t/a", b"2")
    finally:
        await store.close()


async def test_a_lease_and_its_watchers_survive_the_death_of_the_leader(
    cluster: EtcdCluster,
) -> None:
    store = cluster.store()
    try:
        lease = await store.lease(4.0)
        lease.start()
        await store.put("/t/alive", b"", lease=lease.id)
        (await cluster.leader()).kill()
        await asyncio.sleep(5.0)
        assert not lease.lost.is_set()
        assert await store.get("/t/alive") is not None
        await lease.revoke()
        assert await store.get("/t/alive") is None
    finally:
        await store.close()


async def test_a_watch_loses_and_repeats_nothing_under_kill_pause_and_compaction(
    cluster: EtcdCluster,
) -> None:
    writer_store, reader_store = cluster.store(), cluster.store()
    seed = int(os.environ.get("MOECTL_SEED", "6"))
    reader = WatchReader(reader_store)
    reading = asyncio.create_task(reader.run())
    try:
        await asyncio.wait_for(reader.started.wait(), 20)
        faults = Faults(cluster, writer_store, reader, random.Random(seed))
        await write_changes(writer_store, faults, random.Random(seed))
        await asyncio.wait_for(reader.done.wait(), 60)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await writer_store.close()
        await reader_store.close()
    print(
        f"watch: seed={seed} changes={CHANGES} lost={CHANGES - len(reader.seen)}"
        f" repeated={reader.repeated} out_of_order={reader.disordered} resets={reader.resets}"
        f" faults={faults.counts}"
    )
    assert len(reader.seen) == CHANGES
    assert (reader.repeated, reader.disordered) == (0, 0)
    assert reader.resets >= 1  # a compaction went over the reader's head at least once


class WatchReader:
    """Counts what a watch delivers: every change creates one key, so a set tells what is lost."""

    def __init__(self, store: EtcdStore) -> None:
        self.seen: set[str] = set()
        self.repeated = self.disordered = self.resets = 0
        self.started, self.done, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.go_on.set()
        self._store = store

    async def run(self) -> None:
        revision = 0
        async with self._store.watch_prefix("/w/") as watch:
            await watch.ready()
            self.started.set()
            async for batch in watch:
                keys = [e.kv.key for e in batch.events if e.type is EventType.PUT]
                self.disordered += batch.revision <= revision
                revision = batch.revision
                if batch.reset:
                    self.resets += 1
                    self.disordered += bool(self.seen - set(keys))  # nothing is ever deleted
                else:
                    self.repeated += len(keys) - len(set(keys) - self.seen)
                self.seen.update(keys)
                if len(self.seen) == CHANGES:
                    self.done.set()
                await self.go_on.wait()


class Faults:
    """One fault at a time, in turn, so that a majority is always there in the end."""

    def __init__(
        self, cluster: EtcdCluster, store: EtcdStore, reader: WatchReader, rng: random.Random
    ) -> None:
        self.counts = {"kill": 0, "pause": 0, "compact": 0, "compact_behind": 0}
        self._cluster, self._store, self._reader, self._rng = cluster, store, reader, rng
        self._pending: list[asyncio.Task[None]] = []

    async def inject(self, number: int) -> None:
        kind = list(self.counts)[number % len(self.counts)]
        self.counts[kind] += 1
        await getattr(self, f"_{kind}")()

    @property
    def reader_reads(self) -> bool:
        return self._reader.go_on.is_set()

    async def settle(self) -> None:
        while self._pending:
            pending, self._pending = self._pending, []
            await asyncio.gather(*pending)
        self._reader.go_on.set()

    async def _kill(self) -> None:
        await self.settle()
        member = await self._cluster.leader() if self._rng.random() < 0.5 else self._any()
        member.kill()
        self._later(1.0, member.start)

    async def _pause(self) -> None:
        await self.settle()
        await self._cluster.wait_healthy()
        member = self._any()
        member.pause()
        self._later(2.0, member.resume)

    async def _compact(self) -> None:
        await self._compact_now()

    async def _compact_behind(self) -> None:
        """The reader stops reading, its stream breaks, and the history it needs goes away."""
        await self.settle()
        await self._cluster.wait_healthy()
        self._reader.go_on.clear()
        self._pending.append(asyncio.create_task(self._break_then_compact()))

    async def _break_then_compact(self) -> None:
        await asyncio.sleep(1.0)  # changes are written that the reader does not take
        for member in self._cluster.members:
            member.kill()
            member.start()
        await self._cluster.wait_healthy()
        await self._compact_now()
        self._reader.go_on.set()

    async def _compact_now(self) -> None:
        for _ in range(20):
            try:
                revision = await self._store.put("/other", b"x")
                await self._store.compact(revision)
                return
            except StoreError:
                await asyncio.sleep(0.2)

    def _any(self):  # type: ignore[no-untyped-def]
        return self._rng.choice([m for m in self._cluster.members if m.process is not None])

    def _later(self, delay_s: float, act) -> None:  # type: ignore[no-untyped-def]
        async def run() -> None:
            await asyncio.sleep(delay_s)
            act()

        self._pending.append(asyncio.create_task(run()))


async def write_changes(store: EtcdStore, faults: Faults, rng: random.Random) -> None:
    """CHANGES keys in revisions of 1 to 20 keys, with every kind of fault on the way."""
    rounds = max(5, CHANGES // 2500)
    next_fault, number, written = CHANGES // rounds, 0, 0
    while written < CHANGES:
        count = min(rng.randint(1, 20), CHANGES - written)
        keys = [f"/w/{written + i:07d}" for i in range(count)]
        while True:
            try:
                await store.transaction(
                    [], [put_op(key, b"x" * rng.randint(0, 40)) for key in keys]
                )
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.1)
            except StoreAmbiguousError:
                if await _happened(store, keys[0]):
                    break
        written += count
        if written >= next_fault and written < CHANGES:
            await faults.inject(number)
            number, next_fault = number + 1, next_fault + CHANGES // rounds
        if not faults.reader_reads:
            await asyncio.sleep(0.01)  # leave something to write while the reader stands still
    await faults.settle()


async def _happened(store: EtcdStore, key: str) -> bool:
    while True:
        try:
            return await store.get(key) is not None
        except StoreUnavailableError:
            await asyncio.sleep(0.1)


async def test_mutual_tls_and_users_let_in_who_may_and_nobody_else(tmp_path: Path) -> None:
    security = make_certificates(tmp_path)
    cluster = EtcdCluster(tmp_path, 1, security)
    try:
        await cluster.wait_healthy()
        store = cluster.store()
        await store.put("/t/a", b"1")
        await store.close()
        stranger = EtcdStore(cluster.endpoints, 1.0, EtcdSecurity(ca_file=security.ca_file))
        with pytest.raises(StoreUnavailableError):
            await stranger.get("/t/a")
        await stranger.close()
        await _check_users(cluster, security, tmp_path)
    finally:
        cluster.stop()


async def _check_users(cluster: EtcdCluster, security: EtcdSecurity, root: Path) -> None:
    for words in (
        "user add root:rootpw",
        "user grant-role root root",
        "role add fleet",
        "role grant-permission fleet readwrite /t/ /t0",
        "user add moectl:secretpw",
        "user grant-role moectl fleet",
        "auth enable",
    ):
        etcdctl(cluster, *words.split())
    password = root / "password"
    password.write_text("secretpw\n")
    password.chmod(0o600)
    known = dataclasses.replace(security, user="moectl", password_file=str(password))
    store = cluster.store(security=known)
    await store.put("/t/a", b"2")
    watch = store.watch_prefix("/t/")
    await watch.ready()
    with pytest.raises(AuthError):
        await store.put("/elsewhere", b"")
    # A restart forgets every token: the client asks for another, also for its watch and its writes.
    cluster.members[0].kill()
    cluster.members[0].start()
    await eventually(store, "/t/a", b"3")
    batch = await asyncio.wait_for(anext(watch), 20)
    assert batch.events[-1].kv.value == b"3"
    await store.close()
    password.write_text("wrong\n")
    wrong = cluster.store(security=known)
    with pytest.raises(AuthError) as refused:
        await wrong.get("/t/a")
    assert "wrong" not in str(refused.value)
    await wrong.close()


async def test_a_full_store_says_so_and_still_reads(tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path, 1, quota=2 << 20)
    try:
        await cluster.wait_healthy()
        store = cluster.store()
        with pytest.raises(StoreQuotaError) as full:
            for i in range(200):  # the server counts what it has flushed, ten times a second
                await store.put(f"/t/{i}", b"x" * 500_000)
        assert "defragment" in full.value.next_step
        assert await store.get("/t/0") is not None
        status = await store.status()
        assert status.alarms == ("NOSPACE",)
        assert any("NOSPACE" in line for line in status.warnings())
        await store.close()
    finally:
        cluster.stop()


def test_old_servers_are_warned_of_only_when_there_is_more_than_one() -> None:
    def warned(version: str, members: int) -> bool:
        return bool(ServerStatus(version, 0, True, (), members).warnings())

    assert warned("3.5.5", 3) and warned("3.5.1", 3)
    assert not warned("3.5.6", 3) and not warned("3.6.0-rc.1", 3) and not warned("3.5.1", 1)


def test_a_password_is_never_sent_in_the_clear_nor_read_from_an_open_file(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("pw")
    security = EtcdSecurity(user="moectl", password_file=str(password))
    with pytest.raises(UsageError):
        parse_endpoints(["10.0.0.1:2379"], security)
    assert parse_endpoints(["127.0.0.1:2379"], security)
    password.chmod(0o644)
    with pytest.raises(RefusedError, match="others can read"):
        security.password()
