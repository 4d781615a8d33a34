"""/openapi.json shows every body and every answer, and shows what is really answered."""

import asyncio
import json

import httpx
import pytest

from moectl.controller.api.app import create_app
from moectl.controller.api.examples import ANSWERS, STREAMS

FIELD = "parallelism.experts"
ORIGIN = {"commit": "1a2b3c", "path": "clusters/chat.yaml"}


def model(experts: int) -> dict:
    spec = {"source": {"path": "/models/chat"}, "parallelism": {"experts": experts}}
    return {"kind": "Model", "name": "chat", "spec": spec}


@pytest.fixture
async def client(services):
    """A fleet with everything in it: a model that is being made, pages, a field that was taken."""
    held = {"node": "n1", "device": "d0", "page_bytes": 16384, "reserved": 0, "spans": []}
    key = services.mirror.keys.page_map("n1", "d0")
    await services.committer.store.put(key, json.dumps(held))
    app = create_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": "Bearer secret-admin"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as c:
        yield c


async def real_answers(client, services) -> dict[tuple[str, str], object]:
    """What each route answers, asked in an order in which each has something to say."""
    gitops = {"manager": "gitops", "origin": ORIGIN}
    said: dict[tuple[str, str], object] = {}

    async def ask(method: str, path: str, body: dict | None = None, **params: str) -> None:
        url = path.format(kind="Model", name="chat", node="n1", device="d0", operation_id="make")
        answer = await client.request(method.upper(), url, json=body, params=params)
        assert answer.status_code < 300, (method, url, answer.text)
        said.setdefault((method, path), answer.json())

    documents = {"documents": [model(2)], "operation_id": "make"}
    await ask("post", "/v1/apply", documents | gitops)
    async with asyncio.timeout(5):
        while "chat" not in services.mirror.snapshot().status:
            await services.mirror.changed_since(services.mirror.version, 0.1)
    await ask("post", "/v1/apply", {"documents": [model(2)]})
    for method, path in ANSWERS:
        if method == "get":
            await ask(method, path)
    await ask("post", "/v1/tokens", {"name": "ci", "role": "viewer"})
    await client.delete("/v1/tokens/ci")
    again = await client.post("/v1/tokens", json={"name": "chat", "role": "viewer"})
    assert again.status_code == 201
    await ask("delete", "/v1/tokens/{name}")
    await ask("post", "/v1/models/{name}/scale", {"experts": "2", "take": True})
    await ask("post", "/v1/models/{name}/release", {"field": FIELD})
    await ask("post", "/v1/transitions/{operation_id}/cancel")
    await ask("delete", "/v1/specs/{kind}/{name}")
    return said


def fields(value: object) -> object:
    """The names in an answer, of the first item of a list."""
    if isinstance(value, list):
        return fields(value[0]) if value else None
    return set(value) if isinstance(value, dict) else None


# What stands in an answer only when there is something to say.
SOMETIMES = {"unchanged", "plan", "operation_id", "kept", "taken"}


async def test_every_example_has_the_fields_of_a_real_answer(client, services) -> None:
    said = await real_answers(client, services)
    assert set(said) == set(ANSWERS)
    for route, shown in ANSWERS.items():
        names, real = fields(shown), fields(said[route])
        assert names is not None and real is not None, route
        assert names - SOMETIMES == real - SOMETIMES, route
    for part in ("nodes", "models"):
        shown = ANSWERS["get", "/v1/fleet"][part]
        assert fields(shown) == fields(said["get", "/v1/fleet"][part]), part
    status = said["get", "/v1/models/{name}"]["status"]
    shown = ANSWERS["get", "/v1/models/{name}"]["status"]
    assert set(shown) == set(status)
    assert fields(shown["conditions"]) == fields(status["conditions"])


async def test_every_route_shows_a_body_and_an_answer(services) -> None:
    document = create_app(services).openapi()
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert (method, path) in ANSWERS or (method, path) in STREAMS
            good = next(r for s, r in operation["responses"].items() if s.startswith("2"))
            assert "example" in next(iter(good["content"].values())), (method, path)
            if "requestBody" in operation:
                body = operation["requestBody"]["content"]["application/json"]["schema"]
                assert "examples" in schemas[body["$ref"].rpartition("/")[2]], (method, path)
            assert operation["summary"] and operation.get("description"), (method, path)
