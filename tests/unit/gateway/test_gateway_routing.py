"""Routing, admission, heartbeats and time: the rules that need no client."""

import asyncio
import contextlib
import os
import signal
import sys

import openai
import pytest

from moectl.agents.gateway.admission import Allowance, Slots
from moectl.agents.gateway.api_errors import ApiError
from moectl.agents.gateway.prefixes import CHUNK_TOKENS, PrefixHomes, prefix_keys
from moectl.agents.gateway.route import SLACK, Candidate, choose
from moectl.agents.gateway.scripted import ScriptedWorker
from moectl.agents.gateway.timing import Timeline
from moectl.core.transitions import WorkerState


def candidate(device, load=0, matched=0):
    where = (f"{device}:1", device, WorkerState.SERVING, 1, True, True)
    return Candidate(*where, load, matched)


def test_equal_beginnings_have_equal_keys_and_short_prompts_none():
    long = list(range(100))
    assert prefix_keys(long[: CHUNK_TOKENS - 1]) == ()
    one, other = prefix_keys(long), prefix_keys([*long[:70], 7, 7, 7])
    assert len(one) == 3 and one[:2] == other[:2]
    assert prefix_keys([9, *long[1:]])[0] != one[0]
    assert not set(prefix_keys(long, "tenant")) & set(one)
    assert len(prefix_keys([1] * 1_000_000)) == 64


def test_the_worker_with_the_longest_known_beginning_is_chosen_while_it_is_not_too_busy():
    homes = PrefixHomes()
    short, long = prefix_keys([1] * 32), prefix_keys([1] * 96)
    homes.note(long, "a:1")
    homes.note(short, "b:1")
    matched = homes.matched(long)
    assert matched == {"a:1": 3, "b:1": 1}
    for load, expected in ((SLACK, "a"), (SLACK + 1, "b")):
        fleet = [candidate("a", load, 3), candidate("b", 0, 1), candidate("c")]
        assert choose(fleet).device == expected
    assert choose([candidate("a", SLACK + 1, 3), candidate("c")]).device == "c"


def test_the_memory_of_beginnings_is_bounded():
    homes = PrefixHomes(entries_max=10)
    for number in range(50):
        homes.note(prefix_keys([number] * 64), "a:1")
    assert homes.matched(prefix_keys([0] * 64)) == {}
    assert homes.matched(prefix_keys([49] * 64)) == {"a:1": 2}
    for number in range(50):
        homes.note(prefix_keys([49] * 64), f"{number}:1")
    assert len(homes.matched(prefix_keys([49] * 64))) == 8


def test_a_key_has_its_own_slots_and_rate_and_is_told_when_to_come_again():
    now = [0.0]
    slots = Slots(Allowance(total_max=3, per_token_max=2, per_minute_max=6), lambda: now[0])
    with contextlib.ExitStack() as held:
        for name in ("a", "a", "b"):
            held.enter_context(slots.take(name))
        for name in ("a", "b"):
            with pytest.raises(ApiError) as refused, slots.take(name):
                pass
            assert refused.value.status == 429 and refused.value.retry_after_s == 1
        assert slots.headers("a")["x-ratelimit-remaining-requests"] == "0"
        now[0] = 60.0
    assert slots.held == 0
    for _ in range(6):
        with slots.take("a"):
            pass
    with pytest.raises(ApiError, match="6 requests a minute") as refused, slots.take("a"):
        pass
    assert refused.value.retry_after_s == 10
    now[0] += 10.1
    with slots.take("a"):
        pass


def test_phases_add_up_over_replays():
    line = Timeline()
    line.waited(1.0)
    line.sent(10.0)
    line.ended(11.0, {})  # lost before its first token: that was waiting
    line.sent(11.0)
    line.tokens_came(13.0)
    line.tokens_came(16.0)
    line.ended(16.5, {})
    told = {"queue_ms": 500, "prefill_ms": 250, "decode_ms": 125, "exchange_ms": 125}
    line.sent(20.0)
    line.tokens_came(20.5)
    line.ended(21.0, {**told, "cached_tokens": 16})
    whole = line.breakdown(12.0)
    assert whole == {
        "queue_ms": 2500.0,
        "prefill_ms": 2250.0,
        "decode_ms": 3125.0,
        "exchange_ms": 125.0,
        "stream_ms": 4000.0,
        "total_ms": 12000.0,
    }
    assert line.cached_tokens == 16
    line.ended(22.0, {"queue_ms": "x", "prefill_ms": -1, "decode_ms": True, "cached_tokens": -3})
    assert line.cached_tokens == 0


async def test_prompts_with_a_common_beginning_go_where_it_is_known(rig, token):
    first = await rig.start_worker("n1/d0", token_s=0.001)
    await rig.start_worker("n1/d1", token_s=0.001)
    await rig.until_serving(2)
    common = "def f(x):\n    return x + 1\n" * 9
    async with openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key=token) as client:

        async def ask(prompt, length=2):
            await client.completions.create(model="chat", prompt=prompt, max_tokens=length)

        busy = asyncio.create_task(ask("x", 300))
        await rig.until(lambda: first.running == 1)
        await ask(common)  # goes to the idler one, and is known there from now on
        await busy
        for user in range(5):
            await ask(f"{common} {user}")
        await ask("y")
    counts = [len(rig.workers[name].script.submitted) for name in ("n1/d0", "n1/d1")]
    assert counts == [2, 6]


async def test_a_silent_worker_is_given_up_and_its_requests_go_elsewhere(make_rig, token):
    async with make_rig(heartbeat_s=0.05, heartbeats_missed_max=4) as rig:
        silent = await rig.start_worker("n1/d0", token_s=3600)
        await rig.until_serving(1)
        async with openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key=token) as client:
            work = client.completions.create(model="chat", prompt="x", max_tokens=5)
            waiting = asyncio.create_task(work)
            await rig.until(lambda: silent.running == 1)
            await asyncio.sleep(0.5)
            assert not waiting.done()  # slow is not silent
            silent.script.answers_pings = False
            await rig.start_worker("n1/d1")
            answer = await waiting
        assert answer.model_extra["moectl"]["replays"] == 1
        assert rig.app.state.gateway.directory.silences >= 1


async def test_a_stopped_process_is_noticed_and_taken_back_when_it_goes_on(make_rig, token):
    """SIGSTOP: the kernel answers for the process, only its own words do not come."""
    async with make_rig(heartbeat_s=0.05, heartbeats_missed_max=4) as rig:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "moectl.agents.gateway.scripted",
            "--secret-file", rig.app.state.gateway.config.secret_file,
            "--vocabulary", "390", "--token-s", "0.01",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            frozen = ScriptedWorker(None, "")  # a record's worth of it: only its address counts
            frozen.address = (await process.stdout.readline()).decode().strip()
            rig.workers["n1/d0"] = frozen
            await rig.list_worker("n1/d0")
            await rig.until_serving(1)
            async with openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key=token) as client:
                ask = {"model": "chat", "prompt": "abc", "max_tokens": 60}
                expected = (await client.completions.create(**ask)).choices[0].text
                stream = await client.completions.create(**ask, stream=True)
                text = ""
                async for chunk in stream:
                    text += chunk.choices[0].text
                    if len(text) > 20 and len(rig.workers) == 1:
                        os.kill(process.pid, signal.SIGSTOP)
                        await rig.start_worker("n1/d1")
                assert text == expected
                assert rig.workers["n1/d1"].script.submitted[0]["already"]
            await rig.until_serving(1)
            os.kill(process.pid, signal.SIGCONT)
            await rig.until_serving(2)
        finally:
            process.kill()
            await process.wait()
            del rig.workers["n1/d0"]
