"""Can taking away the last admin token lock a fleet? Not at one instant, not by a restart."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from moectl.controller.api.app import create_app
from moectl.controller.api.services import Services
from moectl.controller.api.tokens import decide_revoke
from moectl.controller.auth import digest_of
from moectl.controller.commit import Committer
from moectl.controller.config import Limits, ServerConfig
from moectl.controller.observe import Mirror
from moectl.controller.server import ensure_admin
from moectl.core.clock import SystemClock
from moectl.core.errors import ConflictError
from moectl.core.records import Keys, TokenRecord, to_json
from moectl.core.store.embedded import EmbeddedEtcd
from moectl.core.store.etcd import EtcdStore
from moectl.core.store.memory import MemoryStore
from moectl.core.store.protocol import Store

KEYS, CLOCK = Keys("test"), SystemClock()
ROUNDS = 12


async def let_in(store: Store, *names: str) -> int:
    """Admin tokens of these names, whose texts are `secret-NAME`."""
    revision = 0
    for name in names:
        record = TokenRecord(name, "admin", "default", 0.0)
        revision = await store.put(KEYS.token(digest_of(f"secret-{name}")), to_json(record))
    return revision


@contextlib.asynccontextmanager
async def api_over(store: Store) -> AsyncIterator[tuple[Services, httpx.AsyncClient]]:
    """A whole API with a mirror of its own, as a standby controller has."""
    mirror = Mirror(store, KEYS, CLOCK)
    services = Services("test", mirror, Committer(store, KEYS, CLOCK), CLOCK, Limits())
    following = asyncio.create_task(mirror.run())
    transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        yield services, client
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        port, peer_port = a.getsockname()[1], b.getsockname()[1]
    server = EmbeddedEtcd(tmp_path / "etcd", port, peer_port, tmp_path / "etcd.log")
    process = server.start()
    try:
        await server.wait_healthy(30)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def test_two_admins_who_revoke_each_other_at_one_instant_leave_one(etcd: str) -> None:
    one, two = EtcdStore([etcd]), EtcdStore([etcd])
    winners: set[str] = set()
    async with api_over(one) as (first, client_a), api_over(two) as (second, client_b):
        for _ in range(ROUNDS):
            revision = await let_in(one, "ann", "bob")
            for services in (first, second):
                assert await services.mirror.reach(revision, 5)
            answers = await asyncio.gather(
                client_a.delete("/v1/tokens/bob", headers={"Authorization": "Bearer secret-ann"}),
                client_b.delete("/v1/tokens/ann", headers={"Authorization": "Bearer secret-bob"}),
            )
            assert sorted(answer.status_code for answer in answers) == [200, 409], answers
            (left,) = (await one.get_prefix(KEYS.tokens)).kvs
            winners.add(left.key)
    for store in (one, two):
        await store.close()
    assert winners  # whoever it was


async def test_two_revocations_decided_on_one_picture_cannot_both_happen() -> None:
    store = MemoryStore(CLOCK)
    async with api_over(store) as (services, _):
        assert await services.mirror.reach(await let_in(store, "ann", "bob"), 5)
        snapshot = services.mirror.snapshot()
        changes = [decide_revoke(name, snapshot).done() for name in ("ann", "bob")]
        results = [await services.committer.commit(change) for change in changes]
        assert [result.succeeded for result in results] == [True, False]
        await services.mirror.reach(results[0].revision, 5)
        with pytest.raises(ConflictError, match="last admin token"):
            decide_revoke("bob", services.mirror.snapshot())
    await store.close()


async def test_a_revoked_admin_token_stays_out_over_restarts_and_another_gets_in() -> None:
    store = MemoryStore(CLOCK)
    old, new = (hashlib.sha256(text).hexdigest() for text in (b"old", b"new"))
    settings = ServerConfig("test", ("127.0.0.1:1",), "127.0.0.1", 0, old)
    await ensure_admin(store, KEYS, CLOCK, settings)
    assert await store.get(KEYS.token(old)) is not None
    await store.delete(KEYS.token(old))
    await ensure_admin(store, KEYS, CLOCK, settings)
    assert await store.get(KEYS.token(old)) is None
    rescue = ServerConfig("test", ("127.0.0.1:1",), "127.0.0.1", 0, new)
    await ensure_admin(store, KEYS, CLOCK, rescue)
    assert await store.get(KEYS.token(new)) is not None
    await store.close()
