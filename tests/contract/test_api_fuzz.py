"""Can any request that the description allows, or nearly allows, make the API fail? Schemathesis.

The app runs over the store in memory with the loop that acts. What is checked is that no answer is
a server error and that refusals have our form. MOECTL_FUZZ_EXAMPLES sets how many cases per route.
"""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings

from moectl.controller.api.app import create_app
from moectl.controller.api.services import Services
from moectl.controller.auth import digest_of
from moectl.controller.commit import Committer
from moectl.controller.config import Limits
from moectl.controller.loop import Identity, Loop
from moectl.controller.model_facts import FactsReader
from moectl.controller.observe import Mirror
from moectl.core.clock import SystemClock
from moectl.core.records import DeviceRecord, Keys, NodeRecord, TokenRecord, to_json
from moectl.core.store.memory import MemoryStore

EXAMPLES = int(os.environ.get("MOECTL_FUZZ_EXAMPLES", "6"))
ENDLESS = ("/v1/watch", "/v1/events/watch")
MODEL = {"source": {"path": "/models/chat"}, "parallelism": {"experts": 1}}


async def _serve(ready: threading.Event, stop: threading.Event, told: dict[str, int]) -> None:
    clock, keys = SystemClock(), Keys("test")
    store = MemoryStore(clock)
    mirror = Mirror(store, keys, clock)
    committer, facts = Committer(store, keys, clock), FactsReader()
    loop = Loop(mirror, committer, Identity("c"), Limits(), facts)
    await store.put(keys.token(digest_of("t")), to_json(TokenRecord("a", "admin", "default", 0.0)))
    device = DeviceRecord("d0", "cpu", 64 << 20, 16384)
    node = NodeRecord("n1", "127.0.0.1", (device,), "n1:1", 1, 0.0)
    await store.put(keys.node("n1"), to_json(node))
    services = Services("test", mirror, committer, clock, Limits(), loop, facts)
    config = uvicorn.Config(create_app(services), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    work = [asyncio.create_task(part) for part in (mirror.run(), loop.run(), server._serve())]
    while not server.started or not mirror.is_primed:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    told["port"] = server.servers[0].sockets[0].getsockname()[1]
    ready.set()
    while not stop.is_set():  # noqa: ASYNC110 - set by another thread
        await asyncio.sleep(0.05)
    services.stopping.set()
    server.should_exit = True
    await work[2]
    for task in work[:2]:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    await store.close()


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    ready, stop, told = threading.Event(), threading.Event(), dict[str, int]()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(ready, stop, told)))
    thread.start()
    assert ready.wait(20)
    yield f"http://127.0.0.1:{told['port']}"
    stop.set()
    thread.join(timeout=20)


def test_no_request_makes_the_api_fail(api: str) -> None:
    schema = schemathesis.openapi.from_url(f"{api}/openapi.json")
    counts: dict[int, int] = {}

    def check(operation: schemathesis.APIOperation) -> None:
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @_given(operation)
        def one(case: schemathesis.Case) -> None:
            answer = case.call(headers={"Authorization": "Bearer t"}, timeout=20)
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (case.method, case.path, answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) >= {"type", "message", "exit_code"}

        one()

    checked = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path not in ENDLESS:
            checked.append(f"{operation.method} {operation.path}")
            check(operation)
    print(
        f"{sum(counts.values())} requests on {len(checked)} routes: {dict(sorted(counts.items()))}"
    )
    assert len(checked) >= 20


def _given(operation: schemathesis.APIOperation):  # type: ignore[no-untyped-def]
    from hypothesis import given
    from hypothesis import strategies as st

    modes = schemathesis.GenerationMode
    positive = operation.as_strategy(generation_mode=modes.POSITIVE)
    try:
        negative = operation.as_strategy(generation_mode=modes.NEGATIVE)
    except Exception:  # nothing of this operation can be made wrong
        return given(positive)
    return given(st.one_of(positive, negative))
