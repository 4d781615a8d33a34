"""Who may do what: every route against every role and tenant, tokens, the audit log, the limits."""

import asyncio
import contextlib
import dataclasses
import json
import logging

import httpx
import pytest

from moectl.controller.api import limits
from moectl.controller.api.app import create_app
from moectl.controller.api.audit import to_file
from moectl.controller.api.watch import fleet_events, log_events
from moectl.controller.auth import digest_of
from moectl.core.records import Keys, TokenRecord, to_json

KEYS = Keys("test")
OPEN = {("GET", "/v1/healthz")}
ADMIN_ONLY = {("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/{name}")}
BODIES = {
    "/v1/models/{name}/scale": {"experts": "2", "dry_run": True},
    "/v1/models/{name}/release": {"field": "parallelism.experts", "dry_run": True},
    "/v1/tokens": {"name": "fresh", "role": "viewer"},
}
CALLERS = {
    "nobody": None,
    "unknown": "no-such-token",
    "viewer": "secret-viewer",
    "operator": "secret-operator",
    "admin": "secret-admin",
    "other-viewer": "secret-b-viewer",
    "other-operator": "secret-b-operator",
}


def model(name: str = "chat", experts: int = 2) -> dict:
    spec = {
        "source": {"path": "/models/chat"},
        "parallelism": {"experts": experts},
        "memory": {"kvPerDevice": "1MiB"},
    }
    return {"kind": "Model", "name": name, "spec": spec}


def client_of(services, secret: str | None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    app = create_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)


@pytest.fixture
async def two_tenants(services):
    """The fleet of the other tests with model `chat` of tenant default, and tokens of tenant b."""
    store = services.committer.store
    for role in ("viewer", "operator"):
        record = TokenRecord(f"b-{role}", role, "b", 0.0)
        revision = await store.put(KEYS.token(digest_of(f"secret-b-{role}")), to_json(record))
    spans = [[0, 4, "chat", "chat/experts"]]
    held = {"node": "n1", "device": "d0", "page_bytes": 16384, "reserved": 0, "spans": spans}
    revision = await store.put(KEYS.page_map("n1", "d0"), json.dumps(held))
    await services.mirror.reach(revision, 5)
    async with client_of(services, "secret-operator") as client:
        body = {"documents": [model()], "operation_id": "make-chat"}
        answer = await client.post("/v1/apply", json=body)
        assert answer.status_code == 200, answer.text
        async with asyncio.timeout(5):
            while "make-chat" not in services.mirror.snapshot().transitions:
                await services.mirror.changed_since(services.mirror.version, 0.1)
    return services


def routes(services) -> list[tuple[str, str]]:
    paths = create_app(services).openapi()["paths"]
    return sorted((method.upper(), path) for path, item in paths.items() for method in item)


def needed(method: str, path: str) -> str:
    if (method, path) in ADMIN_ONLY:
        return "admin"
    return "viewer" if method == "GET" else "operator"


def expected_status(who: str, method: str, path: str) -> set[int]:
    if (method, path) in OPEN:
        return {200}
    if who in ("nobody", "unknown"):
        return {401}
    ranks = ["viewer", "operator", "admin"]
    if ranks.index(who.removeprefix("other-")) < ranks.index(needed(method, path)):
        return {403}
    about_chat = "{" in path and "tokens" not in path and "devices" not in path
    if who.startswith("other-") and about_chat and path.rsplit("/", 1)[-1] != "{kind}":
        return {404}  # another tenant's model is not there
    if path.endswith("/release"):
        return {422}  # it was never taken
    if (method, path) == ("DELETE", "/v1/tokens/{name}"):
        return {404}
    return {200, 201, 202, 304}


@pytest.mark.parametrize("who", CALLERS)
async def test_every_route_answers_every_caller_as_its_role_and_tenant_allow(
    two_tenants, who: str
) -> None:
    table = routes(two_tenants)
    assert len(table) >= 22
    async with client_of(two_tenants, CALLERS[who]) as client:
        for method, path in table:
            if path.endswith("/watch"):
                continue  # endless; the two tests below read them
            body = BODIES.get(path)
            if path == "/v1/apply":
                name = "mine" if who.startswith("other-") else "chat"
                body = {"documents": [model(name)], "dry_run": True}
            url = path.format(
                kind="Model", name="chat", operation_id="make-chat", node="n1", device="d0"
            )
            if path.startswith("/v1/tokens/"):
                url = "/v1/tokens/nobody"
            if method == "DELETE" and "specs" in path:
                url += "?dry_run=true"
            if path.endswith("/cancel") and who in ("operator", "admin"):
                continue  # would end the fixture's own operation; tested elsewhere
            answer = await client.request(method, url, json=body)
            wanted = expected_status(who, method, path)
            assert answer.status_code in wanted, (who, method, url, answer.text)
            if who.startswith("other-") and answer.status_code < 300:
                assert "chat" not in answer.text, (method, url)


async def test_watches_show_each_tenant_its_own_and_end_when_the_token_is_revoked(
    two_tenants,
) -> None:
    tokens = two_tenants.mirror.snapshot().tokens
    theirs = tokens[digest_of("secret-b-viewer")].value
    async with asyncio.timeout(10):
        fleet = fleet_events(two_tenants, theirs)
        log = log_events(two_tenants, tokens[digest_of("secret-viewer")].value, None)
        async with contextlib.aclosing(fleet), contextlib.aclosing(log):
            assert b"chat" not in await anext(fleet)
            assert b"model/chat" in await anext(log)
            async with client_of(two_tenants, "secret-admin") as client:
                gone = await client.delete("/v1/tokens/b-viewer")
                assert gone.status_code == 200
            left = [piece async for piece in fleet]
    assert all(b"chat" not in piece for piece in left)


@pytest.mark.parametrize(("who", "status"), [("b-viewer", 404), ("nobody", 401)])
async def test_an_operation_of_another_tenant_cannot_be_followed(
    two_tenants, who: str, status: int
) -> None:
    async with client_of(two_tenants, f"secret-{who}") as client:
        answer = await client.get("/v1/transitions/make-chat/watch?seconds=1")
    assert answer.status_code == status


async def test_the_event_stream_goes_on_after_the_last_event_received(two_tenants) -> None:
    token = two_tenants.mirror.snapshot().tokens[digest_of("secret-viewer")].value
    async with asyncio.timeout(10):
        first = log_events(two_tenants, token, "model/chat")
        async with contextlib.aclosing(first):
            got = (await anext(first)).decode()
        last_id = got.split("id: ")[1].split("\n")[0]
        second = log_events(two_tenants, token, "model/chat", last_id)
        async with contextlib.aclosing(second):
            following = (await anext(second)).decode()
    assert following.split("id: ")[1] > last_id
    ids = sorted(e for e in two_tenants.mirror.snapshot().events if "model.chat" in e)
    assert following.split("id: ")[1].split("\n")[0] == ids[1]


async def test_a_name_of_another_tenant_is_taken_and_nothing_about_it_is_told(two_tenants) -> None:
    async with client_of(two_tenants, "secret-b-operator") as client:
        answer = await client.post("/v1/apply", json={"documents": [model("chat", 1)]})
    assert answer.status_code == 409
    assert "experts" not in answer.text


async def test_a_token_is_made_used_listed_and_revoked_and_its_text_is_nowhere(
    services, tmp_path, caplog
) -> None:
    caplog.set_level(logging.DEBUG)
    audit = tmp_path / "audit.jsonl"
    services.audit = to_file(audit)
    async with client_of(services, "secret-admin") as client:
        made = await client.post("/v1/tokens", json={"name": "ci", "role": "operator"})
        assert made.status_code == 201
        text = made.json()["token"]
        again = await client.post("/v1/tokens", json={"name": "ci", "role": "viewer"})
        assert again.status_code == 409
        async with client_of(services, text) as own:
            who = (await own.get("/v1/whoami")).json()
            assert who == {"name": "ci", "role": "operator", "tenant": "default"}
            assert (await own.get("/v1/tokens")).status_code == 403
            bad = await own.post("/v1/apply", json={"documents": [{"kind": text}]})
            assert bad.status_code == 400
        listed = (await client.get("/v1/tokens")).text
        assert '"ci"' in listed and text not in listed
        assert (await client.delete("/v1/tokens/ci")).status_code == 200
        async with client_of(services, text) as own:
            assert (await own.get("/v1/whoami")).status_code == 401
        last = await client.delete("/v1/tokens/admin")
        assert (last.status_code, last.json()["error"]["type"]) == (409, "ConflictError")
    kept = (await services.committer.store.get_prefix("/moectl/")).kvs
    assert all(text.encode() not in kv.value and text not in kv.key for kv in kept)
    assert text not in caplog.text and "secret-admin" not in caplog.text
    entries = [json.loads(line) for line in audit.read_text().splitlines()]
    assert text not in audit.read_text() and audit.stat().st_mode & 0o077 == 0
    assert [(e["token"], e["method"], e["path"], e["status"]) for e in entries] == [
        ("admin", "POST", "/v1/tokens", 201),
        ("admin", "POST", "/v1/tokens", 409),
        ("ci", "POST", "/v1/apply", 400),
        ("admin", "DELETE", "/v1/tokens/ci", 200),
        ("admin", "DELETE", "/v1/tokens/admin", 409),
    ]


async def test_more_requests_than_the_limit_are_refused_at_once(services, monkeypatch) -> None:
    release = asyncio.Event()
    statuses: list[int] = []

    async def slow(scope, receive, send) -> None:
        await release.wait()

    guard = limits.InflightLimit(slow, total=3, per_token=2)

    async def call(token: bytes) -> None:
        async def send(message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "path": "/v1/fleet", "headers": [(b"authorization", token)]}
        await guard(scope, None, send)

    waiting = [asyncio.create_task(call(token)) for token in (b"a", b"a", b"a", b"b", b"c")]
    await asyncio.sleep(0.05)
    assert statuses == [429, 429]
    release.set()
    await asyncio.gather(*waiting)
    statuses.clear()
    await call(b"a")
    assert statuses == []


async def test_roles_without_a_meaning_may_do_nothing(services) -> None:
    record = TokenRecord("odd", "root", "default", 0.0)
    key = KEYS.token(digest_of("secret-odd"))
    await services.mirror.reach(await services.committer.store.put(key, to_json(record)), 5)
    async with client_of(services, "secret-odd") as client:
        assert (await client.get("/v1/fleet")).status_code == 403
    assert dataclasses.asdict(record)["role"] == "root"
