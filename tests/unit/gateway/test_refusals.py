"""Bad requests get the right status and message, and nothing is left behind."""

import asyncio
import json

import httpx
import pytest


@pytest.fixture
async def http(rig, token):
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=rig.url, headers=headers, timeout=20) as opened:
        yield opened


BAD = [
    ({}, "model"),
    ({"model": 3, "prompt": "x"}, "model"),
    ({"model": "chat"}, "prompt"),
    ({"model": "chat", "prompt": []}, "prompt"),
    ({"model": "chat", "prompt": ""}, "prompt"),
    ({"model": "chat", "prompt": [1, -2]}, "prompt"),
    ({"model": "chat", "prompt": [1, "a"]}, "prompt"),
    ({"model": "chat", "prompt": [True]}, "prompt"),
    ({"model": "chat", "prompt": [10**9]}, "prompt"),
    ({"model": "chat", "prompt": "\ud800"}, "prompt"),
    ({"model": "chat", "prompt": ["x"] * 17}, "prompt"),
    ({"model": "chat", "prompt": "x", "n": 0}, "n"),
    ({"model": "chat", "prompt": "x", "n": 1.5}, "n"),
    ({"model": "chat", "prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"model": "chat", "prompt": "x", "max_tokens": True}, "max_tokens"),
    ({"model": "chat", "prompt": "x", "max_tokens": 10**30}, "max_tokens"),
    ({"model": "chat", "prompt": "x", "temperature": -0.1}, "temperature"),
    ({"model": "chat", "prompt": "x", "temperature": "1"}, "temperature"),
    ({"model": "chat", "prompt": "x", "top_p": 1.1}, "top_p"),
    ({"model": "chat", "prompt": "x", "stop": [""]}, "stop"),
    ({"model": "chat", "prompt": "x", "stop": ["a"] * 17}, "stop"),
    ({"model": "chat", "prompt": "x", "stop": {"a": 1}}, "stop"),
    ({"model": "chat", "prompt": "x", "stream": 1}, "stream"),
    ({"model": "chat", "prompt": "x", "stream_options": {}}, "stream_options"),
    ({"model": "chat", "prompt": "x", "logprobs": 21}, "logprobs"),
    ({"model": "chat", "prompt": "x", "presence_penalty": 2.5}, "presence_penalty"),
    ({"model": "chat", "prompt": "x", "logit_bias": {"1": 200}}, "logit_bias"),
    ({"model": "chat", "prompt": "x", "best_of": 3}, "best_of"),
    ({"model": "chat", "prompt": "x", "messages": []}, "messages"),
    ({"model": "chat", "prompt": "x", "max_tokens": 600}, "prompt"),
]
BAD_CHAT = [
    ({"model": "chat"}, "messages"),
    ({"model": "chat", "messages": []}, "messages"),
    ({"model": "chat", "messages": ["hi"]}, "messages[0]"),
    ({"model": "chat", "messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"model": "chat", "messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"model": "chat", "messages": [{"role": "user"}]}, "messages[0].content"),
    (
        {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
    ),
    ({"model": "chat", "messages": [{"role": "tool", "content": "x"}]}, "messages"),
    (
        {"model": "chat", "messages": [{"role": "user", "content": "x"}], "tools": [{}]},
        "tools",
    ),
]


async def test_a_bad_completion_is_400_and_names_the_parameter(http):
    for body, param in BAD:
        await expect_400(http, "/v1/completions", body, param)


async def test_a_bad_chat_is_400_and_names_the_parameter(http):
    for body, param in BAD_CHAT:
        await expect_400(http, "/v1/chat/completions", body, param)


async def expect_400(http, path, body, param):
    reply = await http.post(
        path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    error = reply.json()["error"]
    assert reply.status_code == 400, (body, error)
    assert error["param"] == param, (body, error)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


async def test_a_body_that_is_no_json_object_is_400(http):
    headers = {"content-type": "application/json"}
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 200_000):
        reply = await http.post("/v1/completions", content=content, headers=headers)
        assert reply.status_code == 400, content[:20]
        assert reply.json()["error"]["code"] == "invalid_json"


async def test_other_statuses_have_openais_form_too(http, rig):
    assert (await http.get("/v1/nothing")).json()["error"]["code"] == "unknown_url"
    assert (await http.get("/v1/completions")).status_code == 405
    text = await http.post("/v1/completions", content="x", headers={"content-type": "text/plain"})
    assert text.status_code == 415
    missing = await http.get("/v1/models/nope")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_without_a_known_token_the_answer_is_401(rig):
    async with httpx.AsyncClient(base_url=rig.url) as http:
        for header in (None, "", "Bearer", "Basic tok-test", "Bearer x", "Bearer tok test"):
            headers = {} if header is None else {"authorization": header}
            for path in ("/v1/models", "/v1/models/chat"):
                reply = await http.get(path, headers=headers)
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
            reply = await http.post("/v1/completions", json={}, headers=headers)
            assert reply.status_code == 401


async def test_a_revoked_token_stops_working(http, rig):
    assert (await http.get("/v1/models")).status_code == 200
    await rig.store.delete_prefix(rig.keys.tokens)
    await rig.until(lambda: not rig.app.state.gateway.directory.tokens)
    assert (await http.get("/v1/models")).status_code == 401


async def test_probes_need_no_token_and_tell_nothing_secret(rig, token):
    await rig.start_worker("n1/d0")
    await rig.until_serving(1)
    async with httpx.AsyncClient(base_url=rig.url) as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        headers = {"authorization": f"Bearer {token}"}
        ready = await http.get("/readyz", headers=headers)
        assert ready.json() == {"status": "ready", "models": {"chat": 1}}
        body = {"model": "chat", "prompt": "x", "max_tokens": 3}
        await http.post("/v1/completions", json=body, headers=headers)
        await http.post("/v1/completions", json={"model": "zzz"}, headers=headers)
        metrics = (await http.get("/metrics")).text
    answered = 'moectl_gateway_requests_total{code="200",model="chat",route="/v1/completions"} 1.0'
    assert answered in metrics
    assert 'kind="completion",model="chat"} 3.0' in metrics
    assert "zzz" not in metrics and token not in metrics


async def test_a_body_above_the_limit_is_413(make_rig, token):
    async with make_rig(body_bytes_max=1000) as rig:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

        async def pieces():
            for _ in range(200):
                yield b"x" * 100

        async with httpx.AsyncClient(base_url=rig.url, headers=headers) as http:
            declared = await http.post("/v1/completions", content=b"x" * 2000)
            chunked = await http.post("/v1/completions", content=pieces())
    assert declared.status_code == chunked.status_code == 413
    assert declared.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("limit", ["inflight_max", "inflight_per_token_max"])
async def test_requests_above_the_limits_are_429_and_slots_come_back(make_rig, token, limit):
    async with make_rig(**{limit: 2}) as rig:
        worker = await rig.start_worker("n1/d0", token_s=0.01)
        await rig.until_serving(1)
        headers = {"authorization": f"Bearer {token}"}
        body = {"model": "chat", "prompt": "x", "max_tokens": 30}
        async with httpx.AsyncClient(base_url=rig.url, headers=headers) as http:
            held = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(2)]
            await rig.until(lambda: worker.running == 2)
            refused = await http.post("/v1/completions", json=body)
            assert refused.status_code == 429
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) >= 1
            assert [reply.status_code for reply in await asyncio.gather(*held)] == [200, 200]
            assert (await http.post("/v1/completions", json=body)).status_code == 200


async def test_a_reader_that_takes_nothing_is_cancelled_not_buffered(make_rig, token):
    async with make_rig(buffered_tokens_max=16, stall_s=1.0) as rig:
        worker = await rig.start_worker("n1/d0")
        await rig.until_serving(1)
        host, port = rig.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=64)
        body = {"model": "chat", "prompt": ["x"] * 16, "max_tokens": 500, "stream": True}
        content = json.dumps(body).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            + f"authorization: Bearer {token}\r\n".encode()
            + f"content-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        await rig.until(lambda: len(worker.script.submitted) == 16)
        await rig.until(lambda: rig.app.state.gateway.slots.held == 0, timeout_s=20)
        assert worker.running == 0
        writer.close()
        del reader


async def test_a_model_without_files_is_503_and_comes_back(http, rig, tmp_path, model_folder):
    await rig.start_worker("n1/d0")
    await rig.until_serving(1)
    gateway = rig.app.state.gateway
    good = gateway.directory.specs["chat"]
    broken = dict(good.spec) | {"source": {"path": str(tmp_path / "nothing")}}
    from dataclasses import replace

    gateway.directory.specs["chat"] = replace(good, spec=broken)
    body = {"model": "chat", "prompt": "x", "max_tokens": 1}
    reply = await http.post("/v1/completions", json=body)
    assert reply.status_code == 503
    assert str(tmp_path) not in reply.text
    (tmp_path / "nothing").symlink_to(model_folder)
    assert (await http.post("/v1/completions", json=body)).status_code == 200
