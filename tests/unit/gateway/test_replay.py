"""A request outlives its worker: nothing repeated, nothing missing, bounded waiting."""

import asyncio

import openai
import pytest

from moectl.agents.gateway.scripted import Script, ScriptedWorker, formula
from moectl.core.plan import DeviceId
from moectl.core.transitions import WorkerState

LENGTH = 120


@pytest.fixture
async def client(rig, token):
    async with openai.AsyncOpenAI(
        base_url=f"{rig.url}/v1", api_key=token, max_retries=0, timeout=30
    ) as opened:
        yield opened


async def whole_text(client) -> str:
    answer = await client.completions.create(model="chat", prompt="abc", max_tokens=LENGTH)
    return answer.choices[0].text


async def streamed(client, on_chunk=None, extension=None) -> tuple[str, int]:
    """(text, replays) of a stream; `on_chunk(count)` is awaited after every chunk.

    `extension` takes in what moectl says beside them.
    """
    stream = await client.completions.create(
        model="chat",
        prompt="abc",
        max_tokens=LENGTH,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, count, replays = "", 0, -1
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].text
            count += 1
            if on_chunk:
                await on_chunk(count)
        else:
            replays = chunk.model_extra["moectl"]["replays"]
            (extension if extension is not None else {}).update(chunk.model_extra["moectl"])
            assert chunk.usage.completion_tokens == LENGTH
    return text, replays


def holder(rig):
    (device,) = [name for name, worker in rig.workers.items() if worker.running]
    return device


async def test_a_worker_broken_off_midstream_is_replayed_exactly(client, rig):
    await rig.start_worker("n1/d0", token_s=0.001)
    await rig.start_worker("n1/d1", token_s=0.001)
    await rig.until_serving(2)
    expected = await whole_text(client)

    async def break_holder(count: int) -> None:
        if count == 20:
            await rig.workers[holder(rig)].break_off()

    text, replays = await streamed(client, break_holder)
    assert (text, replays) == (expected, 1)


async def test_a_leaving_worker_hands_its_requests_over(client, rig):
    await rig.start_worker("n1/d0", token_s=0.001)
    await rig.start_worker("n1/d1", token_s=0.001)
    await rig.until_serving(2)
    expected = await whole_text(client)

    async def leave_once(count: int) -> None:
        if count in (10, 30, 50):
            rig.workers[holder(rig)].leave()

    text, replays = await streamed(client, leave_once)
    assert (text, replays) == (expected, 3)
    alreadies = [
        len(submit["already"])
        for worker in rig.workers.values()
        for submit in worker.script.submitted
    ]
    assert sorted(alreadies)[-1] > 30 and max(alreadies) < LENGTH


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_request_that_moved_is_claimed_where_it_is_or_replayed(client, rig, is_known):
    for name in ("n1/d0", "n1/d1", "n1/d2"):
        await rig.start_worker(name, token_s=0.01)
    await rig.until_serving(3)
    expected = await whole_text(client)
    held_by = []

    async def move_on(count: int) -> None:
        if count in (5, 20):
            now = holder(rig)
            target = next(name for name in rig.workers if name not in (now, *held_by))
            held_by.append(now)
            rig.workers[now].leave(rig.workers[target], is_known)

    changes = {}
    text, replays = await streamed(client, move_on, changes)
    assert text == expected
    assert (replays, changes["moves"]) == ((0, 2) if is_known else (2, 0))
    claims = [s["moved"] for w in rig.workers.values() for s in w.script.submitted if "moved" in s]
    assert len(claims) == 2
    assert not any(worker.adopted for worker in rig.workers.values())


async def test_a_request_that_moved_to_a_worker_nobody_reaches_is_replayed(client, rig):
    await rig.start_worker("n1/d0", token_s=0.01)
    await rig.start_worker("n1/d1", token_s=0.01)
    await rig.until_serving(2)
    expected = await whole_text(client)
    stranger = ScriptedWorker(Script(formula(2048)), "another secret")
    await stranger.start()

    async def move_away(count: int) -> None:
        if count == 20:
            rig.workers[holder(rig)].leave(stranger)

    assert await streamed(client, move_away) == (expected, 1)
    await stranger.break_off()


async def test_a_request_waits_for_a_worker_that_comes_back(client, rig):
    first = await rig.start_worker("n1/d0", token_s=0.001)
    await rig.until_serving(1)
    expected = await whole_text(client)
    replacing: list[asyncio.Task] = []

    async def replace() -> None:
        await first.break_off()
        await asyncio.sleep(0.3)
        await rig.start_worker("n1/d0", token_s=0.001)  # a new address under the same key

    async def at(count: int) -> None:
        if count == 15:
            replacing.append(asyncio.create_task(replace()))

    text, replays = await streamed(client, at)
    assert (text, replays) == (expected, 1)
    await replacing[0]


async def test_a_repeated_token_is_dropped_and_a_lost_one_is_replayed(client, rig):
    bad = await rig.start_worker("n1/d0", token_s=0.001)
    await rig.until_serving(1)
    expected = await whole_text(client)
    bad.script.repeat_at = 7
    assert await streamed(client) == (expected, 0)
    bad.script.skip_at = 11
    await rig.start_worker("n1/d1", token_s=0.001)
    await rig.until_serving(2)
    text, replays = await streamed(client)
    assert text == expected
    assert replays == 1


async def test_an_engine_error_is_tried_elsewhere(client, rig):
    await rig.start_worker("n1/d0", error_at=9)
    await rig.start_worker("n1/d1")
    await rig.until_serving(2)
    text, replays = await streamed(client)
    assert replays == 1 and len(rig.workers["n1/d1"].script.submitted[0]["already"]) == 9
    assert len(text) > 0


async def test_new_requests_avoid_leaving_and_parked_workers(client, rig):
    await rig.start_worker("n1/d0")
    await rig.start_worker("n1/d1")
    await rig.start_worker("n1/d2")
    await rig.list_worker("n1/d0", WorkerState.LEAVING)
    await rig.list_worker("n1/d1", WorkerState.PARKED)
    await rig.until_serving(1)
    for _ in range(5):
        await client.completions.create(model="chat", prompt="x", max_tokens=2)
    assert len(rig.workers["n1/d2"].script.submitted) == 5


async def test_without_a_worker_the_answer_is_503_with_retry_after(make_rig, token):
    async with (
        make_rig(replay_deadline="200ms") as rig,
        openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key=token, max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as error:
            await client.completions.create(model="chat", prompt="x")
    assert error.value.status_code == 503
    assert error.value.response.headers["retry-after"] == "5"


async def test_full_queues_everywhere_are_429_with_retry_after(client, rig, monkeypatch):
    monkeypatch.setattr("moectl.agents.gateway.replay.BUSY_S", 0.2)
    await rig.start_worker("n1/d0", refusal="queue full")
    await rig.until_serving(1)
    with pytest.raises(openai.RateLimitError) as error:
        await client.completions.create(model="chat", prompt="x")
    assert error.value.response.headers["retry-after"] == "1"


async def test_a_vanished_record_keeps_the_connected_worker_as_last_resort(client, rig):
    await rig.start_worker("n1/d0")
    await rig.until_serving(1)
    await rig.store.delete(rig.keys.worker("chat", DeviceId("n1", "d0")))
    answer = await client.completions.create(model="chat", prompt="x", max_tokens=3)
    assert answer.usage.completion_tokens == 3


async def test_a_lost_worker_is_dropped_even_while_its_connection_hangs(client, rig):
    await rig.start_worker("n1/d0", token_s=3600)
    await rig.until_serving(1)
    waiting = asyncio.create_task(client.completions.create(model="chat", prompt="x", max_tokens=3))
    await rig.until(lambda: rig.workers["n1/d0"].running == 1)
    await rig.start_worker("n1/d1")
    await rig.list_worker("n1/d0", WorkerState.LOST)
    answer = await waiting
    assert answer.model_extra["moectl"]["replays"] == 1
