"""The fork server forks from one thread only, and what it starts lives on without it."""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moectl.agents.launch.client import ForkServerClient, argv
from moectl.agents.launch.forkserver import SPARE_S_MIN, ForkServer
from moectl.agents.launch.imports import EngineParts
from moectl.agents.launch.orders import WorkerLaunch
from moectl.agents.launch.spare import read_spare
from moectl.core.errors import EngineError, ProtocolError
from moectl.core.paths import process_id, wait_gone

DEADLINE_S = 60.0
DEMO = Path(__file__).parents[3] / "clusters" / "models" / "demo"
ORDERS = WorkerLaunch(
    model="m",
    node="n1",
    device="d0",
    instance=1,
    node_address="127.0.0.11",
    hmm_socket="h",
    control_socket="c",
    data_host="127.0.0.11",
    secret_file="s",
    model_folder="nowhere",
    model_spec={},
    log_path="l",
)
#: What an import of torch or transformers may draw in, and no worker ever uses.
NEVER_USED = ["torchvision", "torchaudio", "sklearn", "scipy", "pandas", "matplotlib", "accelerate"]
NEVER_USED += ["tensorflow", "jax", "datasets", "transformers.pipelines", "transformers.trainer"]
NEVER_USED += ["torch._inductor.compile_fx", "torch.utils.tensorboard", "pydantic", "fastapi"]

PROBE = """
import gc, json, os, sys
from dataclasses import replace
from pathlib import Path
passes = gc.get_stats()[2]["collections"]
from moectl.agents.launch.imports import import_engine
build = import_engine().build_template
passes = gc.get_stats()[2]["collections"] - passes
def families():
    names = [name.split(".") for name in sys.modules if name.startswith("transformers.models.")]
    return sorted({name[2] for name in names})
before = families()
never_used, folder = json.loads(sys.stdin.read())
build(Path(folder))
print(json.dumps({
    "needless": [name for name in never_used if name in sys.modules], "passes": passes,
    "families": [before, families()], "threads": len(os.listdir("/proc/self/task")),
    "frozen": gc.get_freeze_count() > 0,
}))
"""


def start(socket_path):
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(argv(socket_path, write_fd), pass_fds=[write_fd])
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        assert pipe.read(5) == b"ready"
    return process


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("fork") / "fork.sock"
    path.parent.chmod(0o700)
    process = start(path)
    yield path, process
    process.terminate()
    process.wait(DEADLINE_S)


@pytest.fixture
async def client(server):
    caller = ForkServerClient(server[0])
    yield caller
    await caller.close()


@pytest.fixture
async def fork_another(client, tmp_path):
    """A fork server of one's own at a path of one's own, without an import of its own."""
    tmp_path.chmod(0o700)
    path = tmp_path / "fork.sock"

    async def fork():
        pid = await client.spawn_server(path, tmp_path / "log")
        caller = ForkServerClient(path)
        assert await _serving_pid(caller, None) == pid
        return path, process_id(pid), caller

    return fork


async def test_it_has_one_thread_after_all_its_imports(server, client):
    reply = await client.ping()
    assert reply["pid"] == server[1].pid
    assert len(os.listdir(f"/proc/{server[1].pid}/task")) == 1


async def test_a_store_is_a_child_that_listens_on_the_asked_address_only(client):
    from torch import distributed

    pid, port = await client.spawn_store("127.0.0.12")
    try:
        store = distributed.TCPStore("127.0.0.12", port, is_master=False)
        store.set("key", "value")
        assert store.get("key") == b"value"
        del store
        for address in ("127.0.0.1", "127.0.0.13"):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), 5)
        assert str(pid) in (await client.ping())["children"]
    finally:
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + DEADLINE_S
    while str(pid) in (await client.ping())["children"]:  # reaped: no zombie is left
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def test_a_model_that_does_not_exist_is_refused_with_its_path(client):
    with pytest.raises(EngineError, match=r"/no/such/model"):
        await client.template("/no/such/model")
    assert (await client.ping())["templates"] == []


async def test_nonsense_costs_its_own_connection_only(server, client):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server[0]))
        sock.sendall(b"\xff\xff\xff\xffnonsense")
        assert sock.recv(10) == b""
    assert (await client.ping())["pid"] == server[1].pid


async def test_several_callers_get_their_own_answers(client):
    replies = await asyncio.gather(*(client.ping() for _ in range(5)))
    assert len({reply["pid"] for reply in replies}) == 1


async def test_children_live_on_when_the_server_stops(fork_another):
    _, process, caller = await fork_another()
    pid, _ = await caller.spawn_store("127.0.0.11")
    await caller.stop()
    assert wait_gone(process, DEADLINE_S)
    handle = os.pidfd_open(pid)
    try:
        assert not select.select([handle], [], [], 0.2)[0]
        with pytest.raises(EngineError, match="no fork server answers"):
            await caller.ping()
        # The lock of the path went with the process, not the child.
        _, successor, caller = await fork_another()
        await caller.stop()
        assert wait_gone(successor, DEADLINE_S)
    finally:
        os.kill(pid, signal.SIGTERM)
        assert select.select([handle], [], [], DEADLINE_S)[0]
        os.close(handle)


async def _serving_pid(caller, but_not):
    """Who answers at the path, once it is another process."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        with contextlib.suppress(EngineError):
            pid = (await caller.ping())["pid"]
            if pid != but_not:
                return pid
        await asyncio.sleep(0.01)
    raise AssertionError("nobody took the place of the fork server")


async def test_a_killed_server_is_replaced_by_its_spare_again_and_again(fork_another):
    path, process, caller = await fork_another()
    folder = str(DEMO)
    await caller.template(folder)
    serving = process.pid
    for _ in range(3):
        spare = (await caller.ping())["spare"]
        assert read_spare(path).pid == spare
        os.kill(serving, signal.SIGKILL)
        assert await _serving_pid(caller, serving) == spare
        reply = await caller.ping()
        assert reply["templates"] == [folder]  # what its server knew
        assert len(os.listdir(f"/proc/{spare}/task")) == 1
        serving = spare
    pid, _ = await caller.spawn_store("127.0.0.11")  # it forks as its predecessor did
    os.kill(pid, signal.SIGTERM)
    last = read_spare(path)
    await caller.stop()
    assert wait_gone(last, DEADLINE_S)  # a server that is told to stop takes its spare along
    assert read_spare(path) is None


async def test_what_is_forked_for_a_sibling_knows_what_its_parent_knew_and_outlives_it(
    fork_another, tmp_path
):
    _, parent, caller = await fork_another()
    await caller.template(str(DEMO))
    (tmp_path / "n2").mkdir(mode=0o700)
    path, log = tmp_path / "n2" / "fork.sock", tmp_path / "n2.log"
    pid = await caller.spawn_server(path, log)
    sibling = ForkServerClient(path)
    assert await _serving_pid(sibling, None) == pid
    await caller.stop()
    assert wait_gone(parent, DEADLINE_S)
    told = await sibling.ping()
    assert (told["templates"], told["children"]) == ([str(DEMO)], {})
    with pytest.raises(EngineError, match="/no/such/model"):
        await sibling.template("/no/such/model")
    taken = await sibling.spawn_server(path, log)  # a path has one server: this one gives up
    until = time.monotonic() + DEADLINE_S
    while str(taken) in (await sibling.ping())["children"]:
        assert time.monotonic() < until
        await asyncio.sleep(0.02)
    assert "fork.sock" in log.read_text()
    await sibling.stop()


def test_it_imports_no_more_than_the_engine_and_the_families_that_are_asked_for():
    """As `moectl --help` is held to light imports: whoever waits for a worker waits for this."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        input=json.dumps([NEVER_USED, str(DEMO)]),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["needless"] == []
    assert told["families"] == [["auto"], ["auto", "qwen3_moe"]]
    # The collector never looks at what lasts.
    assert (told["passes"], told["frozen"], told["threads"]) == (0, True, 1)


async def test_a_spare_that_dies_is_replaced(server, client):
    first = (await client.ping())["spare"]
    await asyncio.sleep(SPARE_S_MIN)
    os.kill(first, signal.SIGKILL)
    until = time.monotonic() + DEADLINE_S
    while (second := (await client.ping())["spare"]) in (first, None):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    assert read_spare(server[0]).pid == second
    assert (await client.ping())["pid"] == server[1].pid


def test_it_refuses_to_fork_while_it_has_a_second_thread():
    with socket.socket(socket.AF_UNIX) as listener:
        server = ForkServer(
            listener, EngineParts(lambda folder: "template", lambda launch, template: 0)
        )
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        try:
            reply = server._answer({"op": "spawn", "config": ORDERS.to_plain()})
        finally:
            release.set()
            thread.join()
    assert not reply["ok"]
    assert "threads" in reply["error"]


def test_orders_are_read_back_as_they_were_written_and_nothing_else_is_taken():
    assert WorkerLaunch.from_plain(ORDERS.to_plain()) == ORDERS
    broken = ORDERS.to_plain() | {"extra": 1}
    del broken["device"]
    with pytest.raises(ProtocolError, match=r"device.*extra"):
        WorkerLaunch.from_plain(broken)
    with contextlib.suppress(ValueError), pytest.raises(ProtocolError):
        WorkerLaunch.from_json("[]")


STANDBY_SERVER = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from moectl.agents.launch import forkserver, standby
from moectl.agents.launch.imports import EngineParts

standby.Standbys.__init__.__defaults__ = (2, 0.2)

def run(launch, template):
    print(f"{template} {launch.device} {os.getpid()} {os.getsid(0)}", flush=True)
    time.sleep(60)
    return 0

def rehearse(template):
    if template.endswith("slow"):
        time.sleep(60)

engine = EngineParts(lambda folder: f"template of {folder}", run, rehearse)
sys.exit(forkserver._serve_at(Path(sys.argv[1]), engine, {}))
"""


@pytest.fixture
def standby_server(tmp_path):
    """A fork server in a process of its own whose engine is a few lines."""
    tmp_path.chmod(0o700)
    path = tmp_path / "fork.sock"
    with subprocess.Popen([sys.executable, "-P", "-c", STANDBY_SERVER, str(path)]) as process:
        yield path, process
        process.terminate()  # takes its spare and standbys along


async def until_standbys(caller, count, but_not=()):
    until = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(EngineError):
            standbys = (await caller.ping())["standbys"]
            if len(standbys) == count and not set(standbys) & set(but_not):
                return standbys
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def said(log):
    until = time.monotonic() + DEADLINE_S
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    return log.read_text()


async def test_workers_are_forked_ahead_of_their_orders_and_end_with_their_server(
    standby_server, tmp_path
):
    path, process = standby_server
    caller = ForkServerClient(path)
    await _serving_pid(caller, None)
    assert await until_standbys(caller, 0) == []  # no model is known: whatever for?
    await caller.template("a")
    first = await until_standbys(caller, 2)
    await asyncio.sleep(0.1)  # they have rehearsed
    log = tmp_path / "w.log"
    orders = replace(ORDERS, model_folder="a", log_path=str(log))
    pid = await caller.spawn(orders)
    assert pid in first
    assert await said(log) == f"template of a d0 {pid} {pid}\n"
    assert str(pid) in (await caller.ping())["children"]
    second = await until_standbys(caller, 2, but_not=[pid])  # another takes its place
    await caller.template("b")  # what they do not know they could not serve
    third = await until_standbys(caller, 2, but_not=[*first, *second])
    waiting = [process_id(each) for each in third]
    worker = process_id(pid)
    process.kill()
    process.wait()
    # With the server, whose end of each pair was the last, they are gone; its worker is not.
    assert all(wait_gone(each, DEADLINE_S) for each in waiting if each is not None)
    assert process_id(pid) == worker
    spare = read_spare(path)
    await until_standbys(caller, 2)  # the spare that took over has its own
    await caller.stop()
    assert wait_gone(spare, DEADLINE_S)
    os.kill(pid, signal.SIGKILL)


async def test_a_standby_that_is_not_ready_or_dead_costs_a_fork_and_no_more(
    standby_server, tmp_path
):
    path, process = standby_server
    caller = ForkServerClient(path)
    await _serving_pid(caller, None)
    await caller.template("slow")  # they rehearse for ever
    waiting = await until_standbys(caller, 2)
    log = tmp_path / "w.log"
    orders = replace(ORDERS, model_folder="slow", log_path=str(log))
    pid = await caller.spawn(orders)
    assert pid not in waiting
    assert await said(log) == f"template of slow d0 {pid} {pid}\n"
    for each in waiting:
        os.kill(each, signal.SIGKILL)
    await until_standbys(caller, 2, but_not=waiting)
    await caller.stop()
    assert process.wait(DEADLINE_S) == 0
    os.kill(pid, signal.SIGKILL)
