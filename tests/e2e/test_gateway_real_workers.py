"""The real `openai` client, a gateway and real workers: everything a client may ask, at once.

Real: etcd, an agent process with HMM, fork server and workers, the demo model. In this process: the
controller's loop and the gateway.
"""

import asyncio
import json
import os
import random
import signal

import openai
import pytest
import pytest_asyncio
from served_fleet import TOKEN, running_fleet

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(280)]

REQUESTS = 200
AT_ONCE = 48
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "b"]}, "size": {"type": "integer", "maximum": 99}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
HI = [{"role": "user", "content": "read a file and count its words"}]
COMMON = "def read(path):\n    with open(path) as file:\n        return file.read()\n\n" * 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory):
    async with running_fleet(tmp_path_factory.mktemp("fleet"), 2) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(fleet):
    async with openai.AsyncOpenAI(
        base_url=fleet.url, api_key=TOKEN, max_retries=0, timeout=240
    ) as opened:
        yield opened


async def plain_completion(client, at):
    answer = await client.completions.create(
        model="chat", prompt=f"def f{at}(x):\n", max_tokens=1 + at % 24, seed=at
    )
    assert answer.usage.completion_tokens <= 1 + at % 24 and answer.choices[0].finish_reason


async def streamed_chat(client, at):
    stream = await client.chat.completions.create(
        model="chat",
        messages=HI,
        max_tokens=16,
        temperature=at % 3 / 2,
        top_p=0.9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert 1 <= chunks[-1].usage.completion_tokens <= 16
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


async def several_choices(client, at):
    answer = await client.completions.create(
        model="chat", prompt=["import ", "class "], n=2, max_tokens=6, presence_penalty=0.5
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


async def likelihoods(client, at):
    answer = await client.chat.completions.create(
        model="chat", messages=HI, max_tokens=8, logprobs=True, top_logprobs=3, temperature=0
    )
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert entry.token == entry.top_logprobs[0].token


async def a_schema(client, at):
    answer = await client.chat.completions.create(
        model="chat", messages=HI, max_tokens=64, response_format=FORMAT, seed=at
    )
    assert answer.choices[0].finish_reason == "stop"
    thing = json.loads(answer.choices[0].message.content)
    assert thing["name"] in ("a", "b") and thing["size"] <= 99


async def a_response(client, at):
    answer = await client.responses.create(model="chat", input="hello", max_output_tokens=9)
    assert answer.usage.output_tokens <= 9


async def stop_strings(client, at):
    answer = await client.completions.create(
        model="chat",
        prompt=COMMON + f"# {at}\n",
        max_tokens=24,
        stop=["\n", ")"],
        temperature=0,
        extra_body={"repetition_penalty": 1.1, "min_p": 0.05, "top_k": 40},
    )
    assert "\n" not in answer.choices[0].text


async def left_early(client, at):
    stream = await client.completions.create(
        model="chat", prompt="while", max_tokens=200, stream=True, extra_body={"priority": 3}
    )
    async for _chunk in stream:
        break
    await stream.close()


async def too_long(client, at):
    with pytest.raises(openai.BadRequestError) as error:
        await client.completions.create(model="chat", prompt="x", max_tokens=5000)
    assert error.value.code == "context_length_exceeded"


KINDS = [
    plain_completion,
    plain_completion,
    streamed_chat,
    streamed_chat,
    several_choices,
    likelihoods,
    a_schema,
    a_response,
    stop_strings,
    left_early,
    too_long,
]


async def test_two_hundred_mixed_requests_give_no_error_and_leave_nothing(fleet, client):
    chance = random.Random(7)
    kinds = [chance.choice(KINDS) for _ in range(REQUESTS)]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(at):
        async with gate:
            await kinds[at](client, at)

    outcomes = await asyncio.gather(*(one(at) for at in range(REQUESTS)), return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome is not None] == []
    gateway = fleet.app.state.gateway

    async def is_empty():
        return gateway.slots.held == 0 and gateway.directory.load("chat") == 0

    await fleet.until(is_empty)


async def test_the_timings_of_real_workers_add_up(client):
    answer = await client.completions.create(
        model="chat",
        prompt=COMMON,
        max_tokens=12,
        temperature=0,
        extra_body={"moectl": {"timings": True}, "ignore_eos": True},
    )
    timings = answer.model_extra["moectl"]["timings"]
    total = timings.pop("total_ms")
    assert sum(timings.values()) == pytest.approx(total, abs=0.01)
    for phase in ("prefill", "decode", "exchange"):  # two ranks: every layer exchanges
        assert timings[f"{phase}_ms"] > 0, timings


async def test_a_known_beginning_is_not_computed_again_and_changes_nothing(client):
    ask = {"model": "chat", "prompt": COMMON + "def write", "max_tokens": 12, "temperature": 0}
    first = await client.completions.create(**ask)
    again = await client.completions.create(**ask)
    assert again.usage.prompt_tokens_details.cached_tokens >= 32
    assert again.choices[0].text == first.choices[0].text


async def test_streaming_and_sampling_with_a_seed_say_the_same_twice(client):
    ask = {"model": "chat", "prompt": "for line in", "max_tokens": 40, "seed": 5}
    ask |= {"frequency_penalty": 0.4, "temperature": 1.1}
    whole = await client.completions.create(**ask)
    stream = await client.completions.create(**ask, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text


async def test_a_stopped_worker_is_noticed_replayed_and_healed(fleet, client):
    """SIGSTOP of a rank in the middle of a stream: no token is lost, repeated or changed."""
    ask = {"model": "chat", "prompt": "class Node:\n", "max_tokens": 120, "temperature": 0}
    ask["extra_body"] = {"ignore_eos": True}
    expected = (await client.completions.create(**ask)).choices[0].text
    before = await fleet.epoch()
    streams = [await client.completions.create(**ask, stream=True) for _ in range(4)]
    texts = [""] * len(streams)

    async def read(at):
        async for chunk in streams[at]:
            texts[at] += chunk.choices[0].text

    victim = min(await fleet.workers(), key=lambda worker: worker.rank)
    readers = [asyncio.create_task(read(at)) for at in range(len(streams))]
    async with asyncio.timeout(20):
        while not all(texts):  # noqa: ASYNC110  (a stream has no event to wait for)
            await asyncio.sleep(0.005)
    os.kill(victim.pid, signal.SIGSTOP)
    await asyncio.gather(*readers)
    assert texts == [expected] * len(streams)
    await fleet.until_settled(2, epoch_after=before)
