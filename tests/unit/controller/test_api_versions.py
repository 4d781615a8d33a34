"""Pages, selections, versions and owners over the HTTP API, on a real in-memory store."""

import httpx
import pytest

from moectl.controller.api.app import create_app
from moectl.controller.api.paging import decode, encode
from moectl.core.errors import UsageError
from moectl.core.records import ModelStatus, to_json

FIELD = "parallelism.experts"


def model(name: str = "chat", experts: int = 2) -> dict:
    spec = {"source": {"path": "/models/chat"}, "parallelism": {"experts": experts}}
    return {"kind": "Model", "name": name, "spec": spec}


@pytest.fixture
async def client(calm_services):
    app = create_app(calm_services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": "Bearer secret-admin"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as c:
        yield c


async def apply(client, *documents: dict, **more: object) -> httpx.Response:
    return await client.post("/v1/apply", json={"documents": list(documents)} | more)


async def from_gitops(client, experts: int, **more: object) -> httpx.Response:
    origin = {"commit": "1a2b3c", "path": "clusters/chat.yaml"}
    return await apply(client, model(experts=experts), manager="gitops", origin=origin, **more)


async def settled(client, services) -> None:
    """What is declared was carried out, as far as anybody can tell."""
    generation = (await client.get("/v1/models/chat")).json()["generation"]
    status = ModelStatus("chat", generation, 2, 2, 2, 2, 2, 1, ())
    key = services.mirror.keys.status_of("chat")
    revision = await services.committer.store.put(key, to_json(status))
    await services.mirror.reach(revision, 5)


async def test_a_list_is_read_in_pages_that_follow_each_other(client) -> None:
    names = [f"m{i}" for i in range(7)]
    answer = await apply(client, *(model(name, 1) for name in names))
    assert answer.status_code == 200, answer.text
    read, url = [], "/v1/specs/Model?limit=3"
    while url:
        page = await client.get(url)
        read.append([item["name"] for item in page.json()])
        url = page.links["next"]["url"] if "next" in page.links else ""
    assert read == [names[:3], names[3:6], names[6:]]
    await client.delete("/v1/specs/Model/m3")  # what a page ended with may go meanwhile
    first = await client.get("/v1/specs/Model?limit=4")
    token = first.headers["X-Continue"]
    rest = await client.get("/v1/specs/Model", params={"limit": 4, "continue": token})
    assert [item["name"] for item in rest.json()] == names[5:]


async def test_fields_select_what_is_listed(client) -> None:
    await apply(client, model("a", 1), model("b", 1))
    both = await client.get("/v1/specs/Model", params={"select": "spec.parallelism.experts=1"})
    assert len(both.json()) == 2
    one = await client.get("/v1/specs/Model", params={"select": "name!=a,kind=Model"})
    assert [item["name"] for item in one.json()] == ["b"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "continue=%21", "select=name", "limit=9999"]
)
async def test_a_page_that_makes_no_sense_is_refused(client, query: str) -> None:
    answer = await client.get(f"/v1/models?{query}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "UsageError")


def test_a_continue_token_comes_back_as_it_went() -> None:
    assert decode(encode((1.5, "a/b"))) == (1.5, "a/b")
    with pytest.raises(UsageError):
        decode("bm90IGpzb24")


async def test_a_version_that_is_known_is_not_sent_again(client) -> None:
    await apply(client, model())
    first = await client.get("/v1/specs/Model/chat")
    tag = first.headers["ETag"]
    again = await client.get("/v1/specs/Model/chat", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_write_on_an_older_version_is_refused_with_the_fields_that_changed(
    client, calm_services
) -> None:
    await apply(client, model())
    tag = (await client.get("/v1/models/chat")).headers["ETag"]
    await settled(client, calm_services)
    assert (await client.post("/v1/models/chat/scale", json={"experts": 3})).status_code == 202
    await settled(client, calm_services)
    for call in (
        client.post("/v1/models/chat/scale", json={"experts": 4}, headers={"If-Match": tag}),
        client.delete("/v1/specs/Model/chat", headers={"If-Match": tag}),
        client.post("/v1/apply", json={"documents": [model(experts=1)]}, headers={"If-Match": tag}),
        client.post("/v1/models/chat/scale", json={"experts": 4, "expected_generation": 1}),
    ):
        answer = await call
        assert answer.status_code == 409, answer.text
        assert f"{FIELD} (generation 2 by admin)" in answer.json()["error"]["message"]
    bad = await client.delete("/v1/specs/Model/chat", headers={"If-Match": "seven"})
    assert bad.status_code == 400


async def test_a_field_of_gitops_is_refused_taken_kept_and_released(client, calm_services) -> None:
    assert (await from_gitops(client, 2)).status_code == 200
    await settled(client, calm_services)
    for dry_run in (True, False):
        refused = await client.post(
            "/v1/models/chat/scale", json={"experts": 3, "dry_run": dry_run}
        )
        error = refused.json()["error"]
        assert (refused.status_code, error["exit_code"]) == (409, 3)
        for word in (FIELD, "gitops", "1a2b3c", "clusters/chat.yaml"):
            assert word in error["message"]
    early = await client.post("/v1/models/chat/release", json={"field": FIELD})
    assert early.status_code == 422
    taken = await client.post("/v1/models/chat/scale", json={"experts": 3, "take": True})
    assert taken.status_code == 202
    notes = (await client.get("/v1/specs/Model/chat")).json()["fields"]
    assert notes[FIELD] == {"owner": "admin", "generation": 2, "before": "gitops"}
    assert {note["owner"] for path, note in notes.items() if path != FIELD} == {"gitops"}
    await settled(client, calm_services)
    kept = (await from_gitops(client, 2)).json()["results"][0]
    assert kept["kept"] == [FIELD]
    spec = (await client.get("/v1/specs/Model/chat")).json()
    assert spec["spec"]["parallelism"]["experts"] == 3
    given = await client.post("/v1/models/chat/release", json={"field": FIELD})
    assert given.json()["owner"] == "gitops"
    healed = (await from_gitops(client, 2)).json()["results"][0]
    assert healed["action"] == "configured"
    spec = (await client.get("/v1/specs/Model/chat")).json()
    assert spec["spec"]["parallelism"]["experts"] == 2


async def test_gitops_must_say_where_it_comes_from(client) -> None:
    answer = await apply(client, model(), manager="gitops")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "UsageError")


async def test_the_description_has_every_error_and_an_example_of_every_body(client) -> None:
    document = (await client.get("/openapi.json")).json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if path != "/v1/healthz":
                assert operation["security"] and "409" in operation["responses"], (path, method)
    bodies = [s for name, s in document["components"]["schemas"].items() if name.endswith("Body")]
    assert all("examples" in body for body in bodies if body["title"] != "OriginBody")
