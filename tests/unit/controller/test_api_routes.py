"""The HTTP API over a real in-memory store: answers, errors, roles and the watch."""

import asyncio
import contextlib
import json
import re
from pathlib import Path

import httpx
import pytest

from moectl.controller.api.app import BODY_BYTES_MAX, create_app
from moectl.controller.api.services import Services
from moectl.controller.api.watch import fleet_events
from moectl.controller.auth import digest_of
from moectl.controller.commit import Committer
from moectl.controller.config import Limits
from moectl.controller.observe import Mirror
from moectl.core.clock import SystemClock
from moectl.core.records import Keys
from moectl.core.store.memory import MemoryStore

KEYS = Keys("test")
ROLES = ("viewer", "operator", "admin")
DOCS = Path(__file__).parents[3] / "docs" / "api.md"
MODEL = {
    "kind": "Model",
    "name": "chat",
    "spec": {"source": {"path": "/models/chat"}, "parallelism": {"experts": 2}},
}
CLUSTER = {
    "kind": "Cluster",
    "name": "c",
    "spec": {"nodes": [{"name": "n1", "devices": [{"id": "d0", "hbm": "64MiB"}]}]},
}


def client_of(services: Services, role: str | None = "admin") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer secret-{role}"} if role else {}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(services), raise_app_exceptions=False),
        base_url="http://api",
        headers=headers,
    )


async def test_what_is_applied_is_planned_begun_and_shown(services) -> None:
    async with client_of(services) as client:
        answer = await client.post(
            "/v1/apply", json={"documents": [MODEL, CLUSTER], "operation_id": "up-1"}
        )
        assert answer.status_code == 200
        kinds = [(r["kind"], r["action"]) for r in answer.json()["results"]]
        assert kinds == [("Cluster", "created"), ("Model", "created")]
        async with asyncio.timeout(5):
            while not (await client.get("/v1/transitions")).json():
                await services.mirror.changed_since(services.mirror.version, 0.1)
        (shown,) = (await client.get("/v1/transitions?model=chat")).json()
        assert (shown["operation_id"], shown["phase"], shown["to_width"]) == ("up-1", "prepare", 2)
        full = (await client.get("/v1/transitions/up-1?steps=true")).json()
        assert len(full["steps"]) == shown["steps_total"]
        fleet = (await client.get("/v1/fleet")).json()
        assert [node["name"] for node in fleet["nodes"]] == ["n1", "n2"]
        assert fleet["models"][0]["active"]["operation_id"] == "up-1"
        cancelled = await client.post("/v1/transitions/up-1/cancel")
        assert (cancelled.status_code, cancelled.json()["phase"]) == (202, "forfeit")
        events = (await client.get("/v1/events?subject=model/chat")).json()
        assert {"SpecApplied", "Creating", "CreateForfeiting"} <= {e["reason"] for e in events}
        gone = await client.delete("/v1/specs/Model/chat")
        assert gone.json()["action"] == "deleted"


async def test_the_cli_reads_the_fleet_as_it_is_answered(services) -> None:
    from moectl.cli.fleet_view import fleet_from_plain

    async with client_of(services) as client:
        await client.post("/v1/apply", json={"documents": [MODEL], "operation_id": "up-1"})
        view = fleet_from_plain((await client.get("/v1/fleet")).json())
    assert view.model("chat").spec["parallelism"]["experts"] == 2
    assert [node.name for node in view.nodes] == ["n1", "n2"]


async def test_a_dry_run_of_everything_writes_nothing(services) -> None:
    async with client_of(services) as client:
        before = services.mirror.revision
        body = {"documents": [CLUSTER, MODEL], "dry_run": True}
        answer = await client.post("/v1/apply", json=body)
        assert answer.json()["results"][1]["plan"]["prediction"]["bytes_moved"] > 0
        assert services.mirror.snapshot().specs == {}
        assert services.mirror.revision - before <= 2  # the leader's own keys


async def test_a_mistake_in_one_document_keeps_all_of_them_out(services) -> None:
    async with client_of(services) as client:
        wide = MODEL | {"spec": MODEL["spec"] | {"parallelism": {"experts": 9}}}
        answer = await client.post("/v1/apply", json={"documents": [CLUSTER, wide]})
        assert (answer.status_code, answer.json()["error"]["exit_code"]) == (422, 4)
        assert services.mirror.snapshot().specs == {}


@pytest.mark.parametrize(
    ("call", "body", "status", "kind", "exit_code"),
    [
        ("GET /v1/models/nope", None, 404, "NotFoundError", 3),
        ("GET /v1/transitions/nope", None, 404, "NotFoundError", 3),
        ("GET /v1/specs/Model/nope", None, 404, "NotFoundError", 3),
        ("DELETE /v1/specs/Model/nope", None, 404, "NotFoundError", 3),
        ("POST /v1/models/nope/scale", {"experts": "2"}, 404, "NotFoundError", 3),
        ("POST /v1/models/nope/scale", {"expert": "2"}, 400, "UsageError", 2),
        ("POST /v1/apply", {"documents": []}, 400, "UsageError", 2),
        ("POST /v1/apply", {"documents": [{"kind": "Model"}]}, 400, "UsageError", 2),
        ("POST /v1/apply", {"documents": [MODEL | {"kind": "Pod"}]}, 422, "SpecError", 3),
        ("POST /v1/apply", {"documents": [MODEL | {"spec": {}}]}, 422, "SpecError", 3),
        ("GET /v1/nothing", None, 404, "UsageError", 2),
        ("PUT /v1/fleet", None, 405, "UsageError", 2),
    ],
)
async def test_every_refusal_has_the_same_form(
    services, call, body, status, kind, exit_code
) -> None:
    method, path = call.split()
    async with client_of(services) as client:
        answer = await client.request(method, path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["type"], error["exit_code"]) == (kind, exit_code)
    assert error["message"]


async def test_a_body_that_is_not_json_or_too_large_is_refused(services) -> None:
    async with client_of(services) as client:
        answer = await client.post(
            "/v1/apply", content=b"{", headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400
        headers = {"content-length": str(BODY_BYTES_MAX + 1)}
        answer = await client.post("/v1/apply", content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "UsageError")


def routes_of(services: Services) -> list[tuple[str, str]]:
    document = create_app(services).openapi()
    return sorted(
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    )


async def test_only_health_answers_without_a_token(services) -> None:
    async with client_of(services, None) as client:
        for method, path in routes_of(services):
            answer = await client.request(method, path.format_map(Blanks()))
            assert answer.status_code == (200 if path == "/v1/healthz" else 401), path
        bad = await client.get("/v1/fleet", headers={"Authorization": "Bearer wrong"})
        assert (bad.status_code, bad.json()["error"]["exit_code"]) == (401, 3)


class Blanks(dict):
    """Any path parameter."""

    def __missing__(self, key: str) -> str:
        return "Model" if key == "kind" else "x"


async def test_each_route_asks_for_the_role_that_the_docs_name(services) -> None:
    needed = {(method, path): role for method, path, role in documented_routes()}
    for role in ROLES:
        async with client_of(services, role) as client:
            for method, path in routes_of(services):
                if path == "/v1/healthz" or path.endswith("/watch"):
                    continue
                answer = await client.request(
                    method, path.format_map(Blanks()), json=valid_body(path)
                )
                may = ROLES.index(role) >= ROLES.index(needed[(method, path)])
                assert (answer.status_code == 403) == (not may), (role, method, path)


def valid_body(path: str) -> dict | None:
    if path.endswith("/scale"):
        return {"experts": "2"}
    if path.endswith("/release"):
        return {"field": "parallelism.experts"}
    if path.endswith("/tokens"):
        return {"name": "x", "role": "viewer"}
    return {"documents": [MODEL], "dry_run": True} if path.endswith("/apply") else None


def documented_routes() -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| `(GET|POST|DELETE) (/v1/\S+)` \| (\w+)", DOCS.read_text(), re.MULTILINE)
    return [(method, path, role) for method, path, role in rows]


async def test_the_docs_list_exactly_the_routes_there_are(services) -> None:
    assert sorted((m, p) for m, p, _ in documented_routes()) == routes_of(services)


async def test_only_an_admin_changes_the_cluster(services) -> None:
    async with client_of(services, "operator") as client:
        answer = await client.post("/v1/apply", json={"documents": [CLUSTER]})
        assert answer.status_code == 403
        answer = await client.delete("/v1/specs/Cluster/c")
        assert answer.status_code == 403


async def test_the_watch_sends_a_full_fleet_at_once_and_after_a_change(services) -> None:
    stream = fleet_events(
        services, services.mirror.snapshot().tokens[digest_of("secret-admin")].value
    )
    async with asyncio.timeout(10), contextlib.aclosing(stream):
        first = await anext(stream)
        async with client_of(services) as client:
            await client.post("/v1/apply", json={"documents": [CLUSTER, MODEL]})
        while True:
            event = await anext(stream)
            name, data = event.decode().split("\n")[:2]
            fleet = json.loads(data.removeprefix("data: "))
            if fleet["models"]:
                break
    assert name == "event: fleet"
    assert fleet["revision"] > json.loads(first.decode().split("\n")[1][6:])["revision"]


async def test_before_the_store_was_read_nothing_is_claimed() -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    parts = Services(
        "test", Mirror(store, KEYS, clock), Committer(store, KEYS, clock), clock, Limits()
    )
    async with client_of(parts) as client:
        assert (await client.get("/v1/healthz")).status_code == 503
        assert (await client.get("/v1/fleet")).status_code == 503
    await store.close()
