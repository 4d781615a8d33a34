"""Tenants at the front door: what a token of one cannot see, use or take from another."""

import asyncio
import hashlib

import httpx
import pytest

from moectl.agents.gateway.admission import Allowance, Slots
from moectl.agents.gateway.api_errors import ApiError
from moectl.core.records import SpecRecord, TokenRecord, to_json

PATHS = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
}


async def let_in(rig, name: str, role: str, tenant: str) -> httpx.AsyncClient:
    """A client with a token of its own."""
    digest = hashlib.sha256(f"secret-{name}".encode()).hexdigest()
    await rig.store.put(rig.keys.token(digest), to_json(TokenRecord(name, role, tenant, 0.0)))
    await rig.until(lambda: digest in rig.app.state.gateway.directory.tokens)
    headers = {"authorization": f"Bearer secret-{name}"}
    return httpx.AsyncClient(base_url=rig.url, headers=headers, timeout=20)


async def declare(rig, folder, name: str, tenant: str) -> None:
    """A model of a tenant."""
    spec = {"source": {"path": str(folder)}, "parallelism": {"experts": 2}, "replayDeadline": "2s"}
    record = SpecRecord("Model", name, 1, spec, "op", 0.0, "test", tenant=tenant)
    await rig.store.put(rig.keys.spec("Model", name), to_json(record))
    await rig.until(lambda: name in rig.app.state.gateway.directory.specs)


async def test_a_model_of_another_tenant_is_answered_as_one_that_is_not_there(rig):
    await rig.start_worker("n1/d0")
    await rig.until_serving(1)
    async with (
        await let_in(rig, "ann", "operator", "a") as ann,
        await let_in(rig, "own", "viewer", "default") as own,
        await let_in(rig, "root", "admin", "a") as root,
    ):
        for path, body in PATHS.items():
            for is_stream in (False, True):
                limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
                asked = {**body, "stream": is_stream, limit: 2}
                theirs = await ann.post(path, json={**asked, "model": "chat"})
                nobodys = await ann.post(path, json={**asked, "model": "none"})
                assert theirs.status_code == nobodys.status_code == 404
                assert theirs.text.replace("chat", "none") == nobodys.text
                for client in (own, root):
                    answer = await client.post(path, json={**asked, "model": "chat"})
                    assert answer.status_code == 200, answer.text
        assert (await ann.get("/v1/models/chat")).status_code == 404
        assert (await own.get("/v1/models/chat")).status_code == 200


async def test_each_tenant_lists_its_own_models_and_an_admin_all(rig, model_folder):
    await declare(rig, model_folder, "mine", "a")
    async with (
        await let_in(rig, "ann", "viewer", "a") as ann,
        await let_in(rig, "own", "viewer", "default") as own,
        await let_in(rig, "root", "admin", "a") as root,
        httpx.AsyncClient(base_url=rig.url) as stranger,
    ):
        for client, names in ((ann, {"mine"}), (own, {"chat"}), (root, {"chat", "mine"})):
            listed = (await client.get("/v1/models")).json()["data"]
            assert {model["id"] for model in listed} == names
            assert set((await client.get("/readyz")).json()["models"]) == names
        assert (await stranger.get("/readyz")).json() == {"status": "ready"}


async def test_a_tenant_that_uses_up_its_slots_leaves_those_of_others_alone(make_rig, model_folder):
    async with make_rig(inflight_per_tenant_max=2) as rig:
        await declare(rig, model_folder, "mine", "a")
        async with (
            await let_in(rig, "ann", "viewer", "a") as ann,
            await let_in(rig, "abe", "viewer", "a") as abe,
            await let_in(rig, "own", "viewer", "default") as own,
        ):
            body = {"model": "mine", "prompt": "x", "max_tokens": 2}
            # No worker serves it yet, so these two wait and hold their slots.
            held = [asyncio.create_task(c.post("/v1/completions", json=body)) for c in (ann, abe)]
            await rig.until(lambda: rig.app.state.gateway.slots.held == 2)
            refused = await abe.post("/v1/completions", json=body)
            assert refused.status_code == 429 and "tenant a" in refused.text
            assert int(refused.headers["retry-after"]) >= 1
            await rig.start_worker("n1/d0")
            await rig.until_serving(1)
            other = {"model": "chat", "prompt": "x", "max_tokens": 2}
            assert (await own.post("/v1/completions", json=other)).status_code == 200
            for waiting in held:
                assert (await waiting).status_code == 503  # nobody ever served it
            assert rig.app.state.gateway.slots.held == 0


def test_a_tenants_minute_is_shared_by_its_tokens_and_a_refusal_costs_nothing():
    now = [0.0]
    allowance = Allowance(9, 9, per_minute_max=3, per_tenant_minute_max=4)
    slots = Slots(allowance, lambda: now[0])

    def send(token: str, tenant: str) -> None:
        with slots.take(token, tenant):
            pass

    for token in ("a1", "a1", "a1", "a2"):
        send(token, "a")
    with pytest.raises(ApiError, match="tenant a may send 4 requests a minute"):
        send("a2", "a")
    send("b1", "b")
    now[0] = 15.1  # a quarter of a minute: one request of the tenant came back
    with pytest.raises(ApiError, match="this API key"):
        send("a1", "a")
    send("a2", "a")
