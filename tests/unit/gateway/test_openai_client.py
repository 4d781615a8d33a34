"""The real `openai` client against the gateway: what people will point at it."""

import asyncio

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


async def test_models_are_listed_and_one_can_be_read(client, served):
    listed = await client.models.list()
    assert [model.id for model in listed.data] == ["chat"]
    one = await client.models.retrieve("chat")
    assert one.id == "chat" and one.owned_by == "moectl"


async def test_completion_has_text_reason_and_usage(client, served):
    answer = await client.completions.create(model="chat", prompt="def f", max_tokens=12)
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.model_extra["moectl"] == {"replays": 0, "moves": 0}


async def test_streamed_completion_is_the_whole_one_in_pieces(client, served):
    ask = {"model": "chat", "prompt": "def f", "max_tokens": 40}
    whole = await client.completions.create(**ask)
    stream = await client.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == 40
    assert chunks[-1].model_extra["moectl"] == {"replays": 0, "moves": 0}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


async def test_chat_streams_a_role_then_deltas_then_a_reason(client, served):
    ask = {
        "model": "chat",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        "max_completion_tokens": 20,
    }
    whole = await client.chat.completions.create(**ask)
    chunks = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert whole.object == "chat.completion" and chunks[0].object == "chat.completion.chunk"


async def test_the_chat_template_makes_the_prompt(client, served, model_folder):
    from moectl.agents.gateway.tokenizer import load_text_model

    await client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "hi"}], max_tokens=1
    )
    prompt = served.script.submitted[-1]["prompt"]
    assert load_text_model(model_folder).decode(prompt) == "[user] hi\n[assistant]"


async def test_without_a_limit_chat_may_fill_the_context(client, served):
    answer = await client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


async def test_an_end_token_stops_and_is_not_shown(client, served):
    served.script.token = lambda _prompt, index: 0 if index == 5 else 66
    answer = await client.completions.create(model="chat", prompt="x", max_tokens=50)
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].text) == 5
    ignoring = await client.completions.create(
        model="chat", prompt="x", max_tokens=9, extra_body={"ignore_eos": True}
    )
    assert ignoring.usage.completion_tokens == 9


async def test_a_stop_string_ends_the_text_before_itself_and_cancels(client, served, rig):
    plain = await client.completions.create(model="chat", prompt="abc", max_tokens=200)
    text = plain.choices[0].text
    stop = text[40:43]
    served.script.token_s = 0.001
    stopped = await client.completions.create(
        model="chat", prompt="abc", max_tokens=200, stop=[stop, "never there"]
    )
    assert stopped.choices[0].text == text[: text.find(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    await rig.until(lambda: len(served.script.cancelled) == 1)


async def test_n_and_several_prompts_make_as_many_choices(client, served):
    answer = await client.completions.create(
        model="chat", prompt=["one", "two"], n=2, max_tokens=5, seed=7
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text  # the scripted worker ignores seeds
    assert answer.choices[0].text != answer.choices[2].text
    seeds = [submit["sampling"]["seed"] for submit in served.script.submitted]
    assert sorted(seeds) == [7, 7, 8, 8]
    stream = await client.completions.create(
        model="chat", prompt=["one", "two"], n=2, max_tokens=5, stream=True
    )
    texts = ["", "", "", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in answer.choices]


async def test_echo_shows_the_prompt_first(client, served):
    answer = await client.completions.create(model="chat", prompt="abc", max_tokens=2, echo=True)
    assert answer.choices[0].text.startswith("abc")


async def test_errors_become_the_clients_own_exceptions(client, served, rig):
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="nope", prompt="x")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model="chat", prompt="x", max_tokens=512)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        await client.completions.create(model="chat", prompt="x", extra_body={"temprature": 1})
    assert unknown.value.param == "temprature" and unknown.value.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError) as wrong:
        await client.with_options(api_key="wrong").models.list()
    assert wrong.value.code == "invalid_api_key"


async def test_a_stream_that_cannot_go_on_raises_in_the_client(client, served):
    served.script.error_at = 3
    stream = await client.completions.create(model="chat", prompt="x", max_tokens=9, stream=True)
    with pytest.raises(openai.APIError, match="scripted"):
        async for _chunk in stream:
            pass


async def test_leaving_a_stream_cancels_at_the_worker(client, served, rig):
    served.script.token_s = 0.002
    stream = await client.completions.create(model="chat", prompt="x", max_tokens=400, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await rig.until(lambda: served.running == 0 and len(served.script.cancelled) == 1)
    assert rig.app.state.gateway.slots.held == 0


async def test_a_client_timeout_cancels_at_the_worker(client, served, rig):
    served.script.token_s = 0.05
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.3).completions.create(
            model="chat", prompt="x", max_tokens=400
        )
    await rig.until(lambda: served.running == 0 and len(served.script.cancelled) == 1)


async def test_two_hundred_mixed_requests_give_no_error(client, served, rig):
    await rig.start_worker("n1/d1")
    await rig.until_serving(2)

    async def one(at: int) -> str:
        prompt, length = f"request {at}", 1 + at % 37
        if at % 2:
            stream = await client.completions.create(
                model="chat", prompt=prompt, max_tokens=length, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])
        answer = await client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": prompt}], max_tokens=length
        )
        return answer.choices[0].message.content

    texts = await asyncio.gather(*(one(at) for at in range(200)))
    assert len(texts) == 200
    loads = [len(worker.script.submitted) for worker in rig.workers.values()]
    assert sum(loads) == 200 and min(loads) > 50
