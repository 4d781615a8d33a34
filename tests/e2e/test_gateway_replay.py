"""Clients of a real fleet never see a scale, a kill -9, a new agent or a lost etcd in their text.

Real: etcd, an agent process with HMM, fork server and workers, the demo model, the `openai` client.
In this process, over the same etcd: the controller's loop and the gateway.
"""

import asyncio
import os
import signal
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from served_fleet import TOKEN, running_fleet

from moectl.agents.launch.spare import read_spare
from moectl.core.errors import MoectlError
from moectl.core.paths import is_alive, processes_of_instance, read_run_file, wait_gone
from moectl.core.records import NodeRecord, from_json
from moectl.memory.hmm.client import HmmClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(280)]

LENGTH = 160


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory):
    async with running_fleet(tmp_path_factory.mktemp("fleet"), 2) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(fleet):
    async with openai.AsyncOpenAI(
        base_url=fleet.url, api_key=TOKEN, max_retries=0, timeout=120
    ) as opened:
        yield opened


ASKS = [
    {"prompt": "def read(path):\n", "temperature": 0.0},
    {"prompt": "class Node:\n    ", "temperature": 0.0},
    {"prompt": "import os\n", "temperature": 0.9, "top_p": 0.95, "seed": 11},
    {"prompt": "for line in", "temperature": 1.0, "top_k": 20, "seed": 12},
]


async def ask_one(client, ask):
    """(text, tokens, replays) of one streamed completion."""
    extra = {"ignore_eos": True}
    fields = dict(ask)
    if "top_k" in fields:
        extra["top_k"] = fields.pop("top_k")
    stream = await client.completions.create(
        model="chat",
        max_tokens=LENGTH,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
        **fields,
    )
    text, tokens, replays = "", 0, 0
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].text
        else:
            tokens, replays = chunk.usage.completion_tokens, chunk.model_extra["moectl"]["replays"]
    return text, tokens, replays


class Load:
    """Clients that ask again and again while something happens to the fleet."""

    def __init__(self, client, expected):
        self._client = client
        self._expected = expected
        self._is_over = False
        self.answers = 0
        self.replays = 0

    async def _ask_on(self, ask, expected):
        while not self._is_over:
            text, tokens, replays = await ask_one(self._client, ask)
            assert (text, tokens) == (expected, LENGTH)
            self.answers += 1
            self.replays += replays

    async def during(self, work):
        """Run `work` under load; every answer must be the expected one."""
        pairs = zip(ASKS, self._expected, strict=True)
        tasks = [asyncio.create_task(self._ask_on(ask, text)) for ask, text in pairs]
        try:
            await work
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(client):
    """The texts of a fleet to which nothing happens."""
    return [(await ask_one(client, ask))[0] for ask in ASKS]


async def test_text_is_the_same_through_scales_up_and_down(fleet, client, expected):
    load = Load(client, expected)

    async def scale():
        for width in (3, 1, 2):
            await fleet.declare(width)
            await fleet.until_settled(width)

    await load.during(scale())
    assert load.answers >= len(ASKS)


async def test_a_worker_killed_midstream_loses_and_repeats_nothing(fleet, client, expected):
    load = Load(client, expected)
    before = await fleet.epoch()

    async def kill():
        await asyncio.sleep(0.5)
        victim = min(await fleet.workers(), key=lambda worker: worker.rank)
        os.kill(victim.pid, signal.SIGKILL)
        await fleet.until_settled(2, epoch_after=before)

    await load.during(kill())
    assert load.answers >= len(ASKS)


async def test_a_killed_agent_is_followed_by_one_that_adopts_everything(fleet, client, expected):
    load = Load(client, expected)
    pids = {worker.device: worker.pid for worker in await fleet.workers()}
    before = await fleet.epoch()

    async def replace_agent():
        fleet.agent.kill()
        fleet.agent.wait()
        await asyncio.sleep(0.5)
        fleet.start_agent()

        async def is_registered():
            found = await fleet.store.get(fleet.keys.node("n1"))
            pid = from_json(NodeRecord, found.value).agent_pid if found else 0
            return pid == fleet.agent.pid and await fleet.is_settled(2)

        await fleet.until(is_registered)

    await load.during(replace_agent())
    assert {worker.device: worker.pid for worker in await fleet.workers()} == pids
    assert (await fleet.epoch(), load.replays) == (before, 0)


async def test_with_etcd_away_service_goes_on_and_scaling_works_afterwards(fleet, client, expected):
    load = Load(client, expected)

    async def restart_etcd():
        fleet.etcd_process.kill()
        fleet.etcd_process.wait()
        await asyncio.sleep(4.0)  # longer than the node's lease
        await fleet.start_etcd()
        await fleet.declare(3)
        await fleet.until_settled(3)

    await load.during(restart_etcd())
    assert load.answers >= len(ASKS)


def hmm_answers(fleet):
    """A process that was started a moment ago may not listen yet."""
    try:
        with HmmClient(fleet.node_dir / "hmm.sock", "test") as hmm:
            return bool(hmm.usage())
    except MoectlError:
        return False


@pytest.mark.parametrize("role", ["forkserver", "store", "hmm"])
async def test_a_killed_helper_is_replaced_and_requests_go_on(fleet, client, expected, role):
    load = Load(client, expected)
    before = await fleet.epoch()
    pids = {worker.pid for worker in await fleet.workers()}

    async def kill():
        await asyncio.sleep(0.3)
        run = read_run_file(fleet.node_dir / "run", role)
        spare = read_spare(fleet.node_dir / "fork.sock")
        os.kill(run.process.pid, signal.SIGKILL)

        async def is_back():
            new = read_run_file(fleet.node_dir / "run", role)
            if new is None or new.process == run.process or not is_alive(new.process):
                return False
            return role != "hmm" or await asyncio.to_thread(hmm_answers, fleet)

        await fleet.until(is_back)
        if role == "forkserver":  # nothing is imported anew
            assert read_run_file(fleet.node_dir / "run", role).process == spare
        if role == "hmm":  # workers serve on, and the new one knows their pages
            assert {worker.pid for worker in await fleet.workers()} == pids
        await fleet.declare(2)
        await fleet.until_settled(2)
        await fleet.declare(3)
        await fleet.until_settled(3, epoch_after=before)

    await load.during(kill())
    assert load.answers >= len(ASKS)


def shared_memory_of(pid):
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in lines if "/memfd:" in line and line.split()[1].endswith("s")]


def sockets_of(pid):
    folder = f"/proc/{pid}/fd"
    links = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    return {link for link in links if link.startswith("socket:")}


async def test_with_its_spare_killed_too_a_serving_rank_forks_a_fork_server(
    fleet, client, expected
):
    await fleet.declare(2)
    await fleet.until_settled(2)
    serving = {worker.pid for worker in await fleet.workers()}
    assert all(shared_memory_of(pid) for pid in serving)
    load = Load(client, expected)

    async def kill():
        await asyncio.sleep(0.3)
        server = read_run_file(fleet.node_dir / "run", "forkserver").process
        spare = read_spare(fleet.node_dir / "fork.sock")
        os.kill(server.pid, signal.SIGSTOP)  # else it forks another spare at once
        for process in (spare, server):
            os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(wait_gone, server, 5.0)
        before = await fleet.epoch()
        await fleet.declare(3)
        await fleet.until_settled(3, epoch_after=before)
        new = read_run_file(fleet.node_dir / "run", "forkserver").process
        assert new not in (server, spare) and is_alive(new)

    await load.during(kill())
    assert load.answers >= len(ASKS)
    new = read_run_file(fleet.node_dir / "run", "forkserver").process
    assert f"fork server pid {new.pid} was forked from" in (fleet.folder / "agent.log").read_text()
    # It took along nothing but code: no memory, no threads, no connections of the rank.
    assert shared_memory_of(new.pid) == []
    assert len(os.listdir(f"/proc/{new.pid}/task")) == 1
    assert not sockets_of(new.pid) & set().union(*map(sockets_of, serving))
    # A worker that was forked from it shares the machine's session with nobody.
    ranks = {worker.pid for worker in await fleet.workers()}
    assert serving < ranks and len(set(map(os.getsid, (*ranks, new.pid)))) == len(ranks) + 1


async def test_a_deleted_model_leaves_no_worker_and_no_page(fleet, client):
    await fleet.store.delete(fleet.keys.spec("Model", "chat"))

    async def is_gone():
        placed = await fleet.store.get(fleet.keys.placement("chat"))
        active = await fleet.store.get(fleet.keys.active_of("chat"))
        return placed is None and active is None and not await fleet.workers()

    await fleet.until(is_gone)
    with HmmClient(fleet.node_dir / "hmm.sock", "test") as hmm:
        assert all(device["free"] == device["total"] for device in hmm.usage())
        assert hmm.layouts() == []
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="chat", prompt="x")


async def test_a_terminated_agent_leaves_no_process_and_no_record(fleet):
    await fleet.declare(2)
    await fleet.until_settled(2)
    fleet.agent.send_signal(signal.SIGTERM)
    assert fleet.agent.wait(20) == 0
    assert processes_of_instance(fleet.instance) == []
    assert await fleet.store.get(fleet.keys.node("n1")) is None
    assert await fleet.workers() == []
    assert not list((fleet.node_dir / "run").glob("*.json"))
    assert not list((fleet.node_dir / "workers").iterdir())
