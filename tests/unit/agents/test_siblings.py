"""Nodes of one machine import torch once: the other fork servers are forked from the first."""

import asyncio
import os
import signal

import pytest

from moectl.agents.children import FORK_SERVER, Children
from moectl.agents.config import AgentConfig, NodeConfig
from moectl.agents.launch.spare import read_spare
from moectl.agents.siblings import Siblings
from moectl.core.paths import NodeHome, is_alive, wait_gone
from moectl.core.records import DeviceRecord

DEADLINE_S = 60.0
NODES = ("n1", "n2", "n3")


def children_of(folder, node):
    home = NodeHome(folder / node).create()
    device = DeviceRecord(id="d0", kind="cpu", hbm_bytes=1 << 20, page_bytes=16 << 10)
    config = AgentConfig(
        node=NodeConfig(node, "127.0.0.11", (device,)),
        cluster="c",
        etcd=("127.0.0.1:1",),
        node_dir=str(home.root),
        secret_file="s",
        siblings=tuple(other for other in NODES if other != node),
    )
    return Children(config, home)


@pytest.fixture
async def three(tmp_path):
    """The children of three agents of one machine."""
    made = [children_of(tmp_path, node) for node in NODES]
    yield made
    for each in made:
        await each.stop_all()


def imports(three):
    """How many fork servers were started; the others were forked."""
    return sum(FORK_SERVER in each._started for each in three)


async def test_one_of_them_imports_and_the_others_are_forked_from_it(three, tmp_path):
    await asyncio.gather(*(each.ensure(FORK_SERVER) for each in three))
    assert imports(three) == 1
    pids = [(await each.fork_server.ping())["pid"] for each in three]
    assert len(set(pids)) == 3
    assert [each.process(FORK_SERVER).pid for each in three] == pids

    # Killed with its spare, the one that imported has a fork server again without an import.
    (first,) = [each for each in three if FORK_SERVER in each._started]
    home = NodeHome(tmp_path / NODES[three.index(first)])
    server, spare = first.process(FORK_SERVER), read_spare(home.fork_socket)
    os.kill(server.pid, signal.SIGSTOP)  # else it forks another spare at once
    nobody = Siblings(NodeHome(tmp_path / "n9"), (home.root.name,))
    assert await nobody.fork(tmp_path / "log") is None  # one that hangs is not waited for
    for process in (spare, server):
        os.kill(process.pid, signal.SIGKILL)
        assert wait_gone(process, DEADLINE_S)
    first._started.clear()
    assert await first.ensure(FORK_SERVER)
    assert imports(three) == 0
    again = (await first.fork_server.ping())["pid"]
    assert again == first.process(FORK_SERVER).pid not in pids
    assert [is_alive(each.process(FORK_SERVER)) for each in three] == [True] * 3

    for each in three:
        await each.stop_all()
    assert not list(tmp_path.glob("n*/run/*.json"))
    assert [read_spare(tmp_path / node / "fork.sock") for node in NODES] == [None] * 3


async def test_a_sibling_without_a_fork_server_is_passed_over(tmp_path):
    me = Siblings(NodeHome(tmp_path / "n1"), ("n2", "n3"))
    assert await me.fork(tmp_path / "log") is None  # nobody has one
    (tmp_path / "n2").mkdir()
    (tmp_path / "n2" / "fork.sock").write_text("left by somebody who was killed")
    assert await me.fork(tmp_path / "log") is None


async def test_who_imports_holds_the_lock_and_a_late_one_goes_on_without_it(tmp_path):
    one, two = (Siblings(NodeHome(tmp_path / node).create(), NODES) for node in NODES[:2])
    order = []

    async def import_after(siblings, deadline_s, name, other):
        async with siblings.turn(deadline_s):
            order.append(f"{name} in")
            await other.wait()
            order.append(f"{name} out")

    go, at_once = asyncio.Event(), asyncio.Event()
    at_once.set()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(import_after(one, 1.0, "first", go))
        await asyncio.sleep(0)
        tasks.create_task(import_after(two, DEADLINE_S, "second", at_once))
        await import_after(two, 0.0, "late", at_once)
        go.set()
    assert {entry.name for entry in tmp_path.iterdir()} == set(NODES[:2])  # nothing beside nodes
    assert order == ["first in", "late in", "late out", "first out", "second in", "second out"]
