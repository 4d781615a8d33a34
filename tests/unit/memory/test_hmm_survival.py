"""Does memory outlive the process that owns it? Killed, upgraded, out of disk, with and without
workers that still hold the pages.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from moectl.agents.engine.context import HMM_RETRY_S, WorkerContext
from moectl.core.errors import MappingError, MemoryPoolError
from moectl.core.paths import ProcessId
from moectl.memory.hmm.client import HmmClient
from moectl.memory.hmm.holdings import DeviceSpec
from moectl.memory.hmm.journal import Journal, read_journal
from moectl.memory.hmm.keeper import Keeper
from moectl.memory.hmm.recovery import replay
from moectl.memory.hmm.settled import settled_client
from moectl.memory.hmm.state import NodeState
from moectl.memory.host import HostBackend
from moectl.memory.window import Window

from .conftest import PAGE, PAGES, RunningHmm, eventually, open_fds, start_hmm

ME = ProcessId(os.getpid(), 1)


def kill(hmm: RunningHmm) -> None:
    hmm.process.kill()
    hmm.process.wait(10)


def write_page(client: HmmClient, device: str, page: int, data: bytes) -> Window:
    window = Window(client.device(device), PAGE, writable=True)
    window.map(0, [page])
    ctypes.memmove(window.address, data, len(data))
    return window


def read_page(client: HmmClient, device: str, page: int, count: int) -> bytes:
    with Window(client.device(device), PAGE, writable=False) as window:
        window.map(0, [page])
        return ctypes.string_at(window.address, count)


def test_a_killed_hmm_gets_its_table_and_its_memory_back(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    keeper = Keeper(first.socket, "d0", "worker")
    with client.reserve("d0", 3, "chat/experts") as reservation:
        pages = reservation.commit({"experts:chat:d0:1": {"n": 1}})
    client.free("d0", pages[2:], "chat/experts", layouts={"kv:chat:d0": {"n": 2}})
    client.rename_owner("d0", pages[1:2], "chat/experts", "chat/kv")
    client.set_claims("d0", {"chat/kv": (5, 2.0)})
    window = write_page(client, "d0", pages[0], b"still here")
    kill(first)
    assert ctypes.string_at(window.address, 10) == b"still here"  # workers serve on
    second = start_hmm(private_dir)
    try:
        again = second.client()
        assert again.recovery() == {"waiting": [], "lost": [], "quarantined": 0, **_ok()}
        assert again.pages_of("d0", "chat/experts") == pages[:1]
        assert again.pages_of("d0", "chat/kv") == pages[1:2]
        assert again.get_layout("experts:chat:d0:1") == {"n": 1}
        assert again.get_layout("kv:chat:d0") == {"n": 2}
        assert read_page(again, "d0", pages[0], 10) == b"still here"
        again.check()
    finally:
        keeper.close()
        second.close()
    assert not (private_dir / "hmm.sock.journal").exists()


def _ok() -> dict[str, object]:
    return {"ok": True, "fds": 0}


def test_memory_that_nobody_holds_is_lost_listed_and_free_again(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    with client.reserve("d1", 4, "chat/experts") as reservation:
        reservation.commit({"experts:chat:d1:1": {"n": 1}})
    client.put_layout("shared:chat:d0", {"n": 0})
    kill(first)
    client.close()
    second = start_hmm(private_dir)
    try:
        again = second.client()
        (lost,) = again.recovery()["lost"]
        assert (lost["device"], lost["owner"], lost["pages"]) == ("d1", "chat/experts", 4)
        assert again.get_layout("experts:chat:d1:1") is None
        assert [each["free"] for each in again.usage()] == [PAGES, PAGES]
        again.check()
    finally:
        second.close()


def test_pages_promised_to_a_living_process_stay_away_from_others(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    keeper = Keeper(first.socket, "d0", "worker")
    reservation = client.reserve("d0", 5, "chat/experts")
    number = reservation._number
    kill(first)
    second = start_hmm(private_dir)
    try:
        again = second.client()
        assert again.recovery()["quarantined"] == 5
        with pytest.raises(MemoryPoolError):
            again.reserve("d0", PAGES - 4, "chat/kv")
        resumed = again.call({"op": "resume", "reservations": [number, number + 1]})
        assert resumed["resumed"] == [number]
        again.call({"op": "commit", "reservation": number, "layouts": {}})
        assert again.pages_of("d0", "chat/experts") == reservation.pages
        again.check()
    finally:
        keeper.close()
        second.close()


def test_pages_promised_to_a_dead_process_are_free_after_the_recovery(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    keeper = Keeper(first.socket, "d0", "worker")
    code = (
        "import sys, time; from moectl.memory.hmm.client import HmmClient\n"
        "r = HmmClient(sys.argv[1], 'child').reserve('d0', 5, 'a/b'); print(1, flush=True)\n"
        "time.sleep(60)"
    )
    argv = [sys.executable, "-P", "-c", code, str(first.socket)]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    kill(first)
    child.kill()
    child.wait(10)
    child.stdout.close()
    second = start_hmm(private_dir)
    try:
        again = second.client()
        assert eventually(lambda: again.recovery()["quarantined"] == 0)
        assert again.usage()[0]["free"] == PAGES
    finally:
        keeper.close()
        second.close()


@pytest.fixture
def upgraded(private_dir: Path) -> Iterator[tuple[RunningHmm, RunningHmm, HmmClient]]:
    """An HMM with a client that has pages, a reservation and a channel, and its successor."""
    first = start_hmm(private_dir)
    client = first.client()
    with client.reserve("d0", 3, "chat/experts") as reservation:
        reservation.commit({"experts:chat:d0:1": {"n": 1}})
    second = start_hmm(private_dir, ["--take-over"])
    try:
        yield first, second, client
    finally:
        client.close()
        second.close()


def test_a_successor_takes_over_and_clients_keep_their_connection(
    upgraded: tuple[RunningHmm, RunningHmm, HmmClient],
) -> None:
    first, second, client = upgraded
    assert first.process.wait(10) == 0
    assert client.pages_of("d0", "chat/experts") == (0, 1, 2)  # the same connection
    assert client.get_layout("experts:chat:d0:1") == {"n": 1}
    newcomer = second.client()
    assert newcomer.hmm_pid == second.process.pid
    newcomer.check()


def test_reservations_channels_and_bytes_pass_to_the_successor(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    reservation = client.reserve("d0", 2, "chat/kv")
    window = write_page(client, "d0", reservation.pages[0], b"kept")
    channel = client.channel("c", 2, 4096)
    signal_at = time.monotonic()
    first.process.send_signal(signal.SIGTERM)  # a client maps pages: it waits for a successor
    second = start_hmm(private_dir, ["--take-over"])
    try:
        assert first.process.wait(10) == 0 and time.monotonic() - signal_at < 10
        assert reservation.commit() == client.pages_of("d0", "chat/kv")
        assert read_page(second.client(), "d0", reservation.pages[0], 4) == b"kept"
        same = second.client("other").channel("c", 2, 4096)
        assert os.fstat(same.memfd).st_ino == os.fstat(channel.memfd).st_ino
        same.close()
        assert read_journal(private_dir / "hmm.sock.journal")
    finally:
        window.close()
        channel.close()
        client.close()
        second.close()


def test_many_upgrades_leak_no_descriptor(private_dir: Path) -> None:
    hmm = start_hmm(private_dir)
    client = hmm.client()
    client.device("d0")
    counts = []
    for _ in range(4):
        successor = start_hmm(private_dir, ["--take-over"])
        assert hmm.process.wait(10) == 0
        hmm = successor
        assert client.usage()[0]["total"] == PAGES
        counts.append(open_fds(hmm.process.pid))
    assert len(set(counts)) == 1
    client.close()
    hmm.close()


def test_a_successor_without_a_predecessor_says_what_to_do(private_dir: Path) -> None:
    with pytest.raises(AssertionError):
        start_hmm(private_dir, ["--take-over"], stderr=subprocess.DEVNULL)


def test_sigterm_without_clients_ends_at_once_and_leaves_nothing(private_dir: Path) -> None:
    hmm = start_hmm(private_dir)
    agent = hmm.client("agent")  # asks, but maps nothing
    agent.usage()
    hmm.process.terminate()
    assert hmm.process.wait(10) == 0
    assert sorted(os.listdir(private_dir)) == ["hmm.sock.lock"]
    agent.close()


def test_foreign_memory_is_not_taken_for_a_device(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    client.reserve("d0", 1, "a/b").commit()
    memory = client.device("d0").fd
    foreign = os.memfd_create("foreign")
    os.ftruncate(foreign, PAGES * PAGE)
    kill(first)
    second = start_hmm(private_dir, waits=False)
    again = second.client()
    with pytest.raises(MappingError, match="not the memory of device d0"):
        again.offer("d0", foreign)
    assert again.recovery()["waiting"] == ["d0"]
    with pytest.raises(MemoryPoolError, match="hand its memory back"):
        again.device("d0")
    assert again.offer("d0", memory)
    assert not again.offer("d0", memory)
    os.close(foreign)
    client.close()
    second.close()


def test_who_needs_all_layouts_waits_until_the_memory_is_back(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    client.reserve("d0", 1, "a/shared").commit({"shared:a:d0": {"n": 1}})
    memory = client.device("d0").fd
    kill(first)
    second = start_hmm(private_dir, waits=False)
    # Until then an answer has gaps: the layout is not known, and device d0 is not in the usage.
    assert second.client().get_layout("shared:a:d0") is None
    with pytest.raises(MemoryPoolError, match="waits for the memory of d0"):
        settled_client(second.socket, "worker")
    found: list[HmmClient] = []
    context = SimpleNamespace(
        launch=SimpleNamespace(model="a", hmm_socket=str(second.socket)), device="n1/d0"
    )
    asking = threading.Thread(target=lambda: found.append(WorkerContext.connect(context, "test")))
    asking.start()
    time.sleep(3 * HMM_RETRY_S)
    assert not found
    assert second.client("keeper").offer("d0", memory)
    asking.join(10)
    assert found[0].get_layout("shared:a:d0") == {"n": 1}
    for each in (*found, client):
        each.close()
    second.close()


def node_state(folder: Path) -> NodeState:
    state = NodeState({"cpu": HostBackend()}, folder / "journal")
    state.open([DeviceSpec("d0", 16 * PAGE, PAGE)], 0.0)
    return state


def test_a_full_disk_refuses_changes_and_changes_nothing(private_dir: Path) -> None:
    state = node_state(private_dir)
    number, _ = state.reserve("d0", 2, "a/b", (), ME)
    size = (private_dir / "journal").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        for change in (
            lambda: state.reserve("d0", 1, "a/b", (), ME),
            lambda: state.commit(number, {}),
            lambda: state.put_layouts({"x": {"text": "y" * 100}}),
        ):
            with pytest.raises(MemoryPoolError, match="cannot be written down"):
                change()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    pool = state.device("d0").pool
    assert (pool.free_count, pool.reserved_count) == (14, 2)
    state.commit(number, {})
    assert replay(read_journal(private_dir / "journal")).devices["d0"].pool.used_count == 2
    state.close(forget=True)


def test_a_torn_or_spoilt_journal_is_read_up_to_the_damage(private_dir: Path) -> None:
    path = private_dir / "journal"
    journal = Journal(path, lambda: [["device", "d0", {"page_count": 4}]])
    journal.start()
    journal.append([["hold", "d0", "a/b", [[0, 2]]]])
    journal.close()
    path.write_bytes(path.read_bytes() + b'[["hold","d0","a/b",[[2,')
    assert replay(read_journal(path)).devices["d0"].pool.pages_of("a/b") == (0, 1)
    path.write_bytes(path.read_bytes()[:-9] + b"\n" + json.dumps([["nonsense"]]).encode() + b"\n")
    assert len(read_journal(path)) == 2
    with pytest.raises(MemoryPoolError, match="makes no sense"):
        replay([["hold", "d7", "a/b", [[0, 1]]]])


def test_the_journal_is_rewritten_before_it_grows_without_bound(private_dir: Path) -> None:
    state = node_state(private_dir)
    state.put_layouts({"a": {"text": "x" * 500_000}})
    for number in range(60):
        state.put_layouts({"a": {"text": str(number % 10) * 500_000}})
    assert (private_dir / "journal").stat().st_size < 8 << 20
    again = NodeState({"cpu": HostBackend()}, private_dir / "journal")
    again.open([DeviceSpec("d0", 16 * PAGE, PAGE)], 0.0)
    layout = again.layouts.get("a")
    assert layout is not None and layout["text"][0] == "9"
    for each in (state, again):
        each.close(forget=True)


@pytest.mark.parametrize("settles", ["commit", "forfeit"])
def test_a_preparation_survives_the_hmm_that_promised_its_pages(
    private_dir: Path, settles: str
) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    keeper = Keeper(first.socket, "d0", "worker")
    reservation = client.reserve("d0", 5, "chat/experts")
    kill(first)
    second = start_hmm(private_dir, waits=False)
    try:
        if settles == "commit":
            pages = reservation.commit({"experts:chat:d0:1": {"n": 1}})
            assert client.pages_of("d0", "chat/experts") == pages
            assert client.get_layout("experts:chat:d0:1") == {"n": 1}
        else:
            reservation.forfeit()
            assert client.usage()[0]["free"] == PAGES
        client.check()
        assert second.client().recovery()["quarantined"] == 0
    finally:
        keeper.close()
        second.close()


def test_a_commit_whose_answer_was_lost_is_not_done_twice(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    client = first.client()
    keeper = Keeper(first.socket, "d0", "worker")
    reservation = client.reserve("d0", 5, "chat/experts")
    reservation.commit({"experts:chat:d0:1": {"n": 1}})
    kill(first)
    second = start_hmm(private_dir)
    try:
        assert reservation.commit() == client.pages_of("d0", "chat/experts")
        client.check()
    finally:
        keeper.close()
        second.close()
