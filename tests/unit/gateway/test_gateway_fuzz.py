"""Whatever a client sends, the gateway does not fail: requests generated from its own OpenAPI.

Valid and broken ones, of every operation; also bytes that are no JSON at all. The gateway runs on a
real port in a thread of its own, with a scripted worker behind it.
"""

import asyncio
import threading

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 25  # of each operation, beside what schemathesis derives from the limits


class Gateway:
    """A gateway and what it left behind."""

    def __init__(self, running_rig, folder, path):
        self.url = ""
        self.rig = None
        self.is_clean = False
        self._up, self._over = threading.Event(), None
        self._thread = threading.Thread(target=self._run, args=(running_rig, folder, path))
        self._thread.start()
        assert self._up.wait(20)

    def _run(self, *args):
        asyncio.run(self._serve(*args))

    async def _serve(self, running_rig, folder, path):
        self._over, self._loop = asyncio.Event(), asyncio.get_running_loop()
        async with running_rig(folder, path, choices_max=16) as rig:
            self.rig, self.url = rig, rig.url
            worker = await rig.start_worker("n1/d0")
            await rig.until_serving(1)
            self._up.set()
            await self._over.wait()
            slots = rig.app.state.gateway.slots
            await rig.until(lambda: slots.held == 0 and worker.running == 0)
            self.is_clean = True

    def stop(self):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)


@pytest.fixture(scope="module")
def gateway(rig_maker, model_folder, tmp_path_factory):
    running = Gateway(rig_maker, model_folder, tmp_path_factory.mktemp("fuzz"))
    yield running
    running.stop()
    assert running.is_clean


@pytest.fixture(scope="module")
def http(gateway, token):
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    with httpx.Client(base_url=gateway.url, headers=headers) as opened:
        yield opened


@pytest.fixture(scope="module")
def api(gateway):
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


lazy = schemathesis.pytest.from_fixture("api")


@lazy.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_no_generated_request_makes_the_gateway_fail(case, token):
    _prefer_the_model(case)
    headers = {"Authorization": f"Bearer {token}"}
    case.call_and_validate(headers=headers, checks=CHECKS, timeout=20)


def _prefer_the_model(case):
    """Nothing behind the lookup would be reached by made-up models, tokens and huge limits."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "chat"
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(name), int) and body[name] > 400:
                body[name] = 1 + body[name] % 40
        prompt = body.get("prompt")
        if isinstance(prompt, list) and all(type(item) is int and item >= 0 for item in prompt):
            body["prompt"] = [1 + item % 300 for item in prompt]


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(st.sampled_from(["completions", "chat/completions", "responses"]), st.binary())
def test_bytes_that_are_no_request_are_refused(http, path, content):
    reply = http.post(f"/v1/{path}", content=content)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
