"""One operation is followed over one request, whatever happens beside it, to its very end."""

import asyncio
import contextlib
import dataclasses
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import uvicorn

from moectl.cli.client import ApiClient
from moectl.cli.fleet_view import TransitionView
from moectl.cli.waiting import wait_scaled, wait_transition
from moectl.controller.api.app import create_app
from moectl.controller.api.services import Services
from moectl.controller.api.watch import transition_events
from moectl.controller.auth import digest_of
from moectl.controller.intents import Caller, decide_apply, parse_declarations
from moectl.core.errors import DeadlineError, MoectlError, RefusedError, UnplaceableError
from moectl.core.records import AckRecord, Keys, NodeStats, SpecRecord, to_json

KEYS = Keys("test")
WAIT_S = 20.0
DEVICES = [{"id": device, "hbm": "64MiB"} for device in ("d0", "d1")]
NODES = [{"name": name, "devices": DEVICES} for name in ("n1", "n2")]
CLUSTER = {"kind": "Cluster", "name": "c", "spec": {"nodes": NODES}}


def spec(experts: int) -> dict:
    plain = {"source": {"path": "/models/chat"}, "parallelism": {"experts": experts}}
    return {"kind": "Model", "name": "chat", "spec": plain}


async def answer_phases(services: Services, held: threading.Event) -> None:
    """Be both nodes: report figures without pause, and say yes to every phase unless `held`."""
    store, keys = services.committer.store, services.mirror.keys
    while True:
        version, snapshot = services.mirror.version, services.mirror.snapshot()
        for name in snapshot.active:
            record = snapshot.running(name).value
            for node in () if held.is_set() else snapshot.nodes:
                ack = AckRecord(record.operation_id, node, record.phase, True)
                await store.put(keys.ack(record.operation_id, node), to_json(ack))
        stats = NodeStats("n1", services.clock.now(), (), ())
        await store.put(keys.stats_of("n1"), to_json(stats))
        await services.mirror.changed_since(version, 1.0)
        await asyncio.sleep(0.01)


class Counted:
    """The app, counting what is asked; `cut` streams end after their first event."""

    def __init__(self, app) -> None:
        self.asked: Counter[str] = Counter()
        self.cut = 0
        self._app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.asked[f"{scope['method']} {scope['path']}"] += 1
        if not (self.cut and scope["path"].endswith("/watch")):
            await self._app(scope, receive, send)
            return
        self.cut -= 1

        async def send_and_break(message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                raise ConnectionError("cut")

        with contextlib.suppress(BaseExceptionGroup, ConnectionError):
            await self._app(scope, receive, send_and_break)


@dataclasses.dataclass
class Served:
    """A controller over HTTP, and its two nodes."""

    app: Counted
    client: ApiClient
    held: threading.Event  # set: the nodes answer nothing


@pytest.fixture
async def served(services) -> AsyncIterator[Served]:
    app, held = Counted(create_app(services)), threading.Event()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    server.install_signal_handlers = lambda: None
    nodes = asyncio.create_task(answer_phases(services, held))
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with ApiClient(f"http://127.0.0.1:{port}", "secret-admin") as client:
        yield Served(app, client, held)
    services.stopping.set()
    server.should_exit = True
    nodes.cancel()
    await asyncio.gather(serving, nodes, return_exceptions=True)


async def apply(served: Served, experts: int, operation_id: str) -> None:
    documents = [CLUSTER, spec(experts)]
    await asyncio.to_thread(
        served.client.apply, documents, operation_id=operation_id, dry_run=False
    )


async def wait(served: Served, operation_id: str, seconds: float = WAIT_S) -> list[str]:
    """Wait for an operation whose nodes answer once its first phase was told; the phases told."""
    phases: list[str] = []

    def tell(seen: TransitionView) -> None:
        phases.append(seen.phase)
        served.held.clear()

    ended = await asyncio.to_thread(wait_transition, served.client, operation_id, seconds, tell)
    assert ended.phase == phases[-1]
    return phases


async def test_a_wait_costs_one_request_however_much_happens_meanwhile(served) -> None:
    served.held.set()
    await apply(served, 2, "make")
    phases = await wait(served, "make")
    assert (phases[0], phases[-1]) == ("prepare", "done")
    assert served.app.asked == {"POST /v1/apply": 1, "GET /v1/transitions/make/watch": 1}


async def test_a_stream_that_breaks_is_taken_up_again(served) -> None:
    served.held.set()
    served.app.cut = 1
    await apply(served, 2, "make")
    assert (await wait(served, "make"))[-1] == "done"
    assert served.app.asked["GET /v1/fleet"] == 1
    assert served.app.asked["GET /v1/transitions/make/watch"] <= 2


async def test_a_wait_ends_at_its_deadline_and_not_with_the_operation(served) -> None:
    served.held.set()
    await apply(served, 2, "make")
    with pytest.raises(DeadlineError, match="make"):
        await asyncio.to_thread(wait_transition, served.client, "make", 0.5, lambda seen: None)
    assert served.app.asked["GET /v1/transitions/make/watch"] == 1


async def test_an_intent_that_no_fleet_can_hold_is_refused_while_it_is_waited_for(
    served, services
) -> None:
    documents = {"documents": [CLUSTER], "operation_id": "devices"}
    await asyncio.to_thread(served.client.post, "apply", documents)
    wide = SpecRecord("Model", "chat", 1, spec(9)["spec"], "wide", services.clock.now(), "ann")
    key = KEYS.spec("Model", "chat")  # the API itself would not let it in
    await services.mirror.reach(await services.committer.store.put(key, to_json(wide)), WAIT_S)
    asked = {"model": "chat", "operation_id": "wide", "generation": 1}
    with pytest.raises(UnplaceableError):
        await asyncio.to_thread(wait_scaled, served.client, asked, WAIT_S, lambda view: None)
    assert served.app.asked["GET /v1/transitions/wide/watch"] <= 2


async def test_what_nobody_has_asked_for_is_unknown_and_no_empty_stream(served) -> None:
    def first() -> None:
        next(served.client.watch_transition("nothing", 5.0))

    with pytest.raises(RefusedError, match="nothing"):
        await asyncio.to_thread(first)


async def declare(services: Services, operation_id: str) -> None:
    (declared,) = parse_declarations([spec(2)])
    caller = Caller("ann", services.clock.now(), operation_id)
    await services.carry_out(lambda ground: decide_apply(declared, ground, caller), "/models/chat")


async def test_the_stream_tells_changes_of_the_operation_and_of_nothing_else(services) -> None:
    await declare(services, "make")
    token = services.mirror.snapshot().tokens[digest_of("secret-viewer")].value
    node, phases = services.mirror.snapshot().nodes["n1"], list[str]()
    async with asyncio.timeout(WAIT_S):
        async for piece in transition_events(services, token, "make", 1.0):
            phases.append(json.loads(piece.split(b"data: ")[1])["phase"])
            for start in range(20):  # decisions depend on it, and it is no part of the operation
                changed = dataclasses.replace(node, started_at=float(start))
                await services.committer.store.put(KEYS.node("n1"), to_json(changed))
    assert phases in (["accepted", "prepare"], ["prepare"])


async def test_a_revoked_token_ends_the_stream_of_an_operation_that_goes_on(services) -> None:
    await declare(services, "make")
    digest = digest_of("secret-viewer")
    token = services.mirror.snapshot().tokens[digest].value
    async with asyncio.timeout(WAIT_S):
        stream = transition_events(services, token, "make", 3600.0)
        assert b"event: transition" in await anext(stream)
        await services.committer.store.delete(KEYS.token(digest))
        left = [piece async for piece in stream]
    assert not any(b'"final":true' in piece for piece in left)


def test_a_wait_that_cannot_reach_the_controller_says_so() -> None:
    with (
        ApiClient("http://127.0.0.1:9", "t", deadline_s=1.0) as client,
        pytest.raises(MoectlError, match="does not answer"),
    ):
        wait_transition(client, "op", 5.0, lambda seen: None)
