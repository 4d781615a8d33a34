"""What clients may ask beyond text: likelihoods, penalties, schemas, timings, names, priorities."""

import json

import httpx
import openai
import pytest


@pytest.fixture
async def client(rig, token):
    async with openai.AsyncOpenAI(
        base_url=f"{rig.url}/v1", api_key=token, max_retries=0, timeout=20
    ) as opened:
        yield opened


@pytest.fixture
async def served(rig):
    worker = await rig.start_worker("n1/d0")
    await rig.until_serving(1)
    return worker


HI = [{"role": "user", "content": "hi"}]


async def test_chat_logprobs_have_one_entry_per_token_streamed_or_not(client, served):
    ask = {"model": "chat", "messages": HI, "max_tokens": 30, "logprobs": True, "top_logprobs": 2}
    whole = await client.chat.completions.create(**ask)
    entries = whole.choices[0].logprobs.content
    assert len(entries) == 30
    assert all(entry.logprob == -0.5 and len(entry.top_logprobs) == 2 for entry in entries)
    text = b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
    assert text == whole.choices[0].message.content
    streamed = []
    async for chunk in await client.chat.completions.create(**ask, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == entries


async def test_completion_logprobs_are_columns_whose_offsets_go_on(client, served):
    ask = {"model": "chat", "prompt": "ab", "max_tokens": 20, "logprobs": 1}
    table = (await client.completions.create(**ask)).choices[0].logprobs
    lengths = [len(name) for name in table.tokens]
    assert table.text_offset == [sum(lengths[:at]) for at in range(20)]
    assert table.token_logprobs == [-0.5] * 20 and len(table.top_logprobs) == 20
    names, offsets = [], []
    async for chunk in await client.completions.create(**ask, stream=True):
        if chunk.choices[0].logprobs:
            names += chunk.choices[0].logprobs.tokens
            offsets += chunk.choices[0].logprobs.text_offset
    assert (names, offsets) == (table.tokens, table.text_offset)


async def test_without_logprobs_none_are_asked_for_or_shown(client, served):
    answer = await client.chat.completions.create(model="chat", messages=HI, max_tokens=2)
    assert answer.choices[0].logprobs is None
    assert set(served.script.submitted[0]["sampling"]) == {"temperature", "top_p", "top_k", "seed"}
    assert "priority" not in served.script.submitted[0]


async def test_penalties_bias_and_schema_reach_the_worker(client, served):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await client.chat.completions.create(
        model="chat",
        messages=HI,
        max_tokens=2,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias={"7": -100},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={"min_p": 0.1, "repetition_penalty": 1.2, "top_k": 9, "priority": -5},
    )
    submitted = served.script.submitted[0]
    assert submitted["priority"] == -5
    sampling = submitted["sampling"]
    assert json.loads(sampling["grammar"].pop("text")) == schema
    assert sampling["grammar"] == {"kind": "json_schema"}
    assert sampling["logit_bias"] == [[7, -100.0]]
    assert (sampling["min_p"], sampling["repetition_penalty"], sampling["top_k"]) == (0.1, 1.2, 9)
    assert (sampling["presence_penalty"], sampling["frequency_penalty"]) == (0.5, -0.25)


async def test_a_schema_that_the_engine_cannot_follow_is_a_400(client, served):
    served.script.refusal = "the json_schema is not supported: no"
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(
            model="chat", messages=HI, response_format={"type": "json_object"}
        )
    assert error.value.code == "request_refused"


async def test_timings_come_when_asked_for_and_add_up(client, served):
    served.script.spent = {
        "queue_ms": 2.0,
        "prefill_ms": 3.0,
        "decode_ms": 4.0,
        "exchange_ms": 1.5,
        "cached_tokens": 1,
    }
    served.script.token_s = 0.002
    ask = {"model": "chat", "prompt": "x", "max_tokens": 10}
    wanted = {"extra_body": {"moectl": {"timings": True}}}
    whole = await client.completions.create(**ask, **wanted)
    chunks = [
        chunk async for chunk in await client.completions.create(**ask, stream=True, **wanted)
    ]
    for timings in (
        whole.model_extra["moectl"]["timings"],
        chunks[-1].model_extra["moectl"]["timings"],
    ):
        parts = [timings[f"{name}_ms"] for name in ("prefill", "decode", "exchange")]
        assert parts == [3.0, 4.0, 1.5] and 2.0 <= timings["queue_ms"] < 500
        total = sum(value for name, value in timings.items() if name != "total_ms")
        assert total == pytest.approx(timings["total_ms"], abs=0.01)
    assert whole.usage.prompt_tokens_details.cached_tokens == 1
    plain = await client.completions.create(**ask)
    assert "timings" not in plain.model_extra["moectl"]


async def test_timings_are_seen_from_here_when_the_worker_tells_none(client, served, rig):
    served.script.token_s = 0.01
    answer = await client.completions.create(
        model="chat", prompt="x", max_tokens=10, extra_body={"moectl": {"timings": True}}
    )
    timings = answer.model_extra["moectl"]["timings"]
    assert timings["prefill_ms"] >= 9 and timings["decode_ms"] >= 80
    assert timings["exchange_ms"] == 0.0
    async with httpx.AsyncClient(base_url=rig.url) as http:
        metrics = (await http.get("/metrics")).text
    for phase in ("queue", "prefill", "decode", "exchange", "stream"):
        name = f'moectl_gateway_request_phase_seconds_count{{model="chat",phase="{phase}"}} 1.0'
        assert name in metrics
    assert 'moectl_gateway_generations_waiting{model="chat"} 0.0' in metrics


async def test_a_clients_request_id_comes_back_and_a_bad_one_is_replaced(rig, token, served):
    headers = {"authorization": f"Bearer {token}"}
    body = {"model": "chat", "prompt": "x", "max_tokens": 1}
    async with httpx.AsyncClient(base_url=rig.url, headers=headers) as http:
        for given in ("my-id.7:a", "a" * 128):
            for path, status in (("/v1/completions", 200), ("/v1/nothing", 404)):
                reply = await http.post(path, json=body, headers={"x-request-id": given})
                assert (reply.status_code, reply.headers["x-request-id"]) == (status, given)
        for given in ("a" * 129, "a b", "", "ü".encode("latin-1"), "a\tb"):
            reply = await http.post("/v1/completions", json=body, headers={"x-request-id": given})
            assert reply.headers["x-request-id"].startswith("req-")
        streamed = await http.post(
            "/v1/completions", json=body | {"stream": True}, headers={"x-request-id": "s-1"}
        )
        assert streamed.headers["x-request-id"] == "s-1"
    assert served.script.submitted[0]["id"].startswith("cmpl-")  # never the client's


async def test_a_viewer_may_not_jump_the_queue(client, served):
    with pytest.raises(openai.PermissionDeniedError) as error:
        await client.completions.create(model="chat", prompt="x", extra_body={"priority": 1})
    assert error.value.body["param"] == "priority"


async def test_rate_limit_headers_tell_what_is_left(make_rig, token):
    async with make_rig(inflight_per_token_max=3, requests_per_minute_max=2) as rig:
        await rig.start_worker("n1/d0")
        await rig.until_serving(1)
        headers = {"authorization": f"Bearer {token}"}
        body = {"model": "chat", "prompt": "x", "max_tokens": 1}
        async with httpx.AsyncClient(base_url=rig.url, headers=headers) as http:
            replies = [await http.post("/v1/completions", json=body) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "3"
    assert replies[0].headers["x-ratelimit-remaining-requests"] == "2"
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"


async def test_responses_answer_whole_and_streamed(client, served):
    ask = {"model": "chat", "input": "hi", "instructions": "be brief", "max_output_tokens": 12}
    whole = await client.responses.create(**ask)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 12 and whole.output_text
    prompts = [submit["prompt"] for submit in served.script.submitted]
    events = [event async for event in await client.responses.create(**ask, stream=True)]
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    await client.chat.completions.create(
        model="chat",
        messages=[{"role": "system", "content": "be brief"}, *HI],
        max_tokens=1,
    )
    assert served.script.submitted[-1]["prompt"] == prompts[0]


async def test_a_conversation_can_be_carried_on_with_earlier_responses(client, served):
    first = await client.responses.create(model="chat", input=HI, max_output_tokens=3)
    earlier = [item.model_dump(exclude_none=True) for item in first.output]
    for item in earlier:
        for part in item["content"]:
            part.pop("annotations", None)
            part.pop("logprobs", None)
    second = await client.responses.create(model="chat", input=[*HI, *earlier, *HI])
    assert second.usage.input_tokens > first.usage.total_tokens - 3


async def test_responses_refuse_what_would_need_a_store(client, served):
    for field, value in {"previous_response_id": "resp_1", "background": True}.items():
        with pytest.raises(openai.BadRequestError) as error:
            await client.responses.create(model="chat", input="x", **{field: value})
        assert error.value.body["param"] == field
    with pytest.raises(openai.BadRequestError) as empty:
        await client.responses.create(model="chat", input=[])
    assert empty.value.body["param"] == "input"
