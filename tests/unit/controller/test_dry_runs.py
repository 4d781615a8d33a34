"""A dry run is judged by the code of the real write, and changes nothing at all."""

import httpx
import pytest

from moectl.controller.api.app import create_app

FIELD = "parallelism.experts"
ORIGIN = {"commit": "1a2b3c", "path": "clusters/chat.yaml"}


def model(experts: int = 2, name: str = "chat") -> dict:
    spec = {"source": {"path": "/models/chat"}, "parallelism": {"experts": experts}}
    return {"kind": "Model", "name": name, "spec": spec}


CLUSTER = {
    "kind": "Cluster",
    "name": "c",
    "spec": {"nodes": [{"name": "n1", "devices": [{"id": "d0", "hbm": "64MiB"}]}]},
}
# (call, body, status, word of the answer)
WRITES = [
    ("POST /v1/apply", {"documents": [CLUSTER, model(1, "other")]}, 200, "created"),
    ("POST /v1/apply", {"documents": [model(3)]}, 200, "configured"),
    ("POST /v1/models/taken/scale", {"experts": "3"}, 202, "operation_id"),
    ("POST /v1/models/taken/release", {"field": FIELD}, 200, "gitops"),
    ("DELETE /v1/specs/Model/chat", None, 200, "deleted"),
    ("POST /v1/apply", {"documents": [model(99)]}, 422, "UnplaceableError"),
    ("POST /v1/apply", {"documents": [model(2) | {"spec": {}}]}, 422, "SpecError"),
    ("POST /v1/models/gits/scale", {"experts": "2"}, 409, "1a2b3c"),
    ("POST /v1/models/taken/scale", {"experts": "99"}, 422, "UnplaceableError"),
    ("POST /v1/models/chat/release", {"field": FIELD}, 422, "RefusedError"),
    ("DELETE /v1/specs/Model/none", None, 404, "NotFoundError"),
]


@pytest.fixture
async def client(calm_services):
    """Models `chat` of a person, `gits` of gitops, `taken` from gitops; all are at their width."""
    app = create_app(calm_services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": "Bearer secret-admin"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as c:
        gitops = {"manager": "gitops", "origin": ORIGIN}
        await send(c, "POST /v1/apply", {"documents": [model(1)]})
        await send(
            c, "POST /v1/apply", {"documents": [model(1, "gits"), model(1, "taken")]} | gitops
        )
        await settle(c, calm_services, "chat", "gits", "taken")
        answer = await send(c, "POST /v1/apply", {"documents": [model(2, "taken")], "take": True})
        assert answer.status_code == 200, answer.text
        await settle(c, calm_services, "taken")
        yield c


async def settle(client, services, *names: str) -> None:
    """What is declared was carried out, as far as anybody can tell."""
    from moectl.core.records import ModelStatus, to_json

    for name in names:
        generation = (await client.get(f"/v1/models/{name}")).json()["generation"]
        status = ModelStatus(name, generation, 1, 1, 1, 1, 1, 1, ())
        key = services.mirror.keys.status_of(name)
        await services.mirror.reach(await services.committer.store.put(key, to_json(status)), 5)


async def send(client, call: str, body: dict | None, dry_run: bool = False) -> httpx.Response:
    method, path = call.split()
    if body is None:
        return await client.request(method, path, params={"dry_run": str(dry_run).lower()})
    return await client.request(method, path, json=body | {"dry_run": dry_run})


@pytest.mark.parametrize(("call", "body", "status", "word"), WRITES)
async def test_a_dry_run_answers_as_the_write_does_and_leaves_the_revision(
    client, calm_services, call, body, status, word
) -> None:
    store = calm_services.committer.store
    before = (await store.get_prefix("/")).revision
    rehearsed = await send(client, call, body, dry_run=True)
    assert (rehearsed.status_code, word in rehearsed.text) == (status, True), rehearsed.text
    assert (await store.get_prefix("/")).revision == before
    carried_out = await send(client, call, body)
    changed = (await store.get_prefix("/")).revision > before
    assert (carried_out.status_code, changed) == (status, status < 300), carried_out.text
    if status >= 300:
        assert rehearsed.json() == carried_out.json()
