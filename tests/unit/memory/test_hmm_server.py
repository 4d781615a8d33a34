"""Does the HMM process keep what is committed, forget what is not, and hand out the same memory?"""

import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from moectl.core.errors import (
    DeadlineError,
    MappingError,
    MemoryPoolError,
    PoolExhaustedError,
    ProtocolError,
)
from moectl.memory.hmm.client import HmmClient
from moectl.memory.tensors import tensor_at
from moectl.memory.window import Window

from .conftest import (
    PAGE,
    PAGES,
    RunningHmm,
    eventually,
    open_fds,
    run_child,
    start_hmm,
    started_child,
)

ATTACH = """
import sys, torch
from moectl.memory.hmm.client import HmmClient
from moectl.memory.tensors import tensor_at
from moectl.memory.window import Window
client = HmmClient(sys.argv[1], "child")
handle = client.device("d0")
pages = client.pages_of("d0", "chat/shared")
window = Window(handle, len(pages) * handle.page_bytes, writable=True)
window.map(0, pages)
view = tensor_at(window, 0, (len(pages) * handle.page_bytes // 8,), torch.int64)
assert int(view[5]) == 41, view[5]
view[5] += 1
"""

HOLD = """
import sys, time
from moectl.memory.hmm.client import HmmClient
client = HmmClient(sys.argv[1], "holder")
client.reserve("d0", 3, "chat/kv").commit({"kv:chat:d0": {"pages": 3}})
client.reserve("d0", 100, "chat/experts")
client.channel("chat:1", 4, 4096)
print("holding", flush=True)
time.sleep(60)
"""

ADDRESS_OTHER_USER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
    sock.settimeout(10)
    sock.connect(sys.argv[1])
    sys.exit(0 if sock.recv(1) == b"" else 1)
"""


def usage_of(client: HmmClient, device: str) -> dict[str, object]:
    return next(entry for entry in client.usage() if entry["device"] == device)


def test_the_server_imports_nothing_but_the_standard_library() -> None:
    done = run_child(
        "import sys, moectl.memory.hmm.server\n"
        "roots = {name.split('.')[0] for name in sys.modules} - {'moectl'}\n"
        "foreign = roots - set(sys.stdlib_module_names) - {'sitecustomize', '__main__'}\n"
        "print(sorted(name for name in foreign if not name.startswith('_')))\n"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_two_processes_see_the_same_bytes(hmm: RunningHmm) -> None:
    client = hmm.client()
    assert (client.node, client.device_ids) == ("n1", ("d0", "d1"))
    handle = client.device("d0")
    assert (handle.page_bytes, handle.page_count) == (PAGE, PAGES)
    reservation = client.reserve("d0", 2, "chat/shared")
    window = Window(handle, 2 * PAGE, writable=True)
    window.map(0, reservation.pages)
    view = tensor_at(window, 0, (2 * PAGE // 8,), torch.int64)
    view[5] = 41
    reservation.commit()
    done = run_child(ATTACH, str(hmm.socket))
    assert done.returncode == 0, done.stderr
    assert int(view[5]) == 42


def test_a_killed_client_forfeits_its_reservation_and_nothing_else(hmm: RunningHmm) -> None:
    client = hmm.client()
    with started_child(HOLD, str(hmm.socket)) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
        assert usage_of(client, "d0")["reserved"] == 100
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
    assert eventually(lambda: usage_of(client, "d0")["reserved"] == 0)
    assert usage_of(client, "d0")["used"] == {"chat/kv": 3}
    assert client.get_layout("kv:chat:d0") == {"pages": 3}
    client.check()


def test_a_reservation_is_filled_then_committed_or_forfeited(hmm: RunningHmm) -> None:
    client = hmm.client()
    with pytest.raises(KeyError), client.reserve("d1", 10, "chat/kv"):
        raise KeyError
    assert usage_of(client, "d1")["free"] == PAGES
    with client.reserve("d1", 10, "chat/kv") as reservation:
        assert reservation.commit() == tuple(range(10))
    reservation.forfeit()
    assert usage_of(client, "d1")["used"] == {"chat/kv": 10}
    with pytest.raises(MappingError, match="not open"):
        reservation.commit()


def test_too_large_a_reservation_is_refused_with_the_holders(hmm: RunningHmm) -> None:
    client = hmm.client()
    client.reserve("d0", 200, "chat/experts").commit()
    client.reserve("d0", 6, "chat/kv")
    with pytest.raises(PoolExhaustedError) as refusal:
        client.reserve("d0", 51, "chat/shared")
    assert (refusal.value.needed_pages, refusal.value.free_pages) == (51, 50)
    assert refusal.value.holders == {"chat/experts": 200, "chat/kv": 6}
    assert refusal.value.device == "d0"


def test_pages_are_freed_renamed_and_found_by_owner_all_or_nothing(hmm: RunningHmm) -> None:
    client = hmm.client()
    pages = client.reserve("d0", 6, "chat/experts").commit()
    client.rename_owner("d0", pages[:2], "chat/experts", "chat/kv")
    assert client.pages_of("d0", "chat/kv") == pages[:2]
    with pytest.raises(MappingError):
        client.free("d0", pages, "chat/experts")
    client.free("d0", pages[2:], "chat/experts")
    with pytest.raises(MappingError):
        client.free("d0", pages[2:], "chat/experts")
    with pytest.raises(MappingError):
        client.free("d0", [PAGES], "chat/kv")
    assert usage_of(client, "d0")["used"] == {"chat/kv": 2}
    client.check()


def test_layouts_change_together_with_pages(hmm: RunningHmm) -> None:
    client = hmm.client()
    pages = client.reserve("d0", 4, "m/experts").commit({"experts:m:d0:1": {"n": 1}})
    client.put_layout("shared:m:d0", {"x": [1, 2]})
    assert client.layouts() == ["experts:m:d0:1", "shared:m:d0"]
    assert client.layouts("experts:") == ["experts:m:d0:1"]
    client.free(
        "d0", pages, "m/experts", drop_layouts=["experts:m:d0:1"], layouts={"experts:m:d0:2": {}}
    )
    assert client.layouts("experts:") == ["experts:m:d0:2"]
    client.drop_layout("experts:m:d0:2")
    client.drop_layout("experts:m:d0:2")
    assert client.get_layout("experts:m:d0:2") is None
    assert client.get_layout("shared:m:d0") == {"x": [1, 2]}


def test_a_large_layout_passes_and_a_larger_one_is_refused_before_it_is_sent(
    hmm: RunningHmm,
) -> None:
    client = hmm.client()
    client.put_layout("big", {"text": "x" * (9 << 20)})
    layout = client.get_layout("big")
    assert layout is not None and len(layout["text"]) == 9 << 20
    with pytest.raises(ProtocolError, match="at most"):
        client.put_layout("huge", {"text": "x" * (17 << 20)})
    assert client.layouts() == ["big"]


def test_every_caller_of_a_channel_gets_the_same_memory_and_doorbells(hmm: RunningHmm) -> None:
    first = hmm.client().channel("chat:1", 16, 4096)
    second = hmm.client().channel("chat:1", 16, 4096)
    os.pwrite(first.memfd, b"hello", 5 * 4096)
    assert os.pread(second.memfd, 5, 5 * 4096) == b"hello"
    assert (first.bytes, len(first.eventfds), len(first.eventfds[3])) == (65536, 16, 16)
    os.eventfd_write(first.eventfds[3][7], 2)
    assert select.select([second.eventfds[7][3]], [], [], 0)[0] == []
    assert os.eventfd_read(second.eventfds[3][7]) == 2
    with pytest.raises(BlockingIOError):
        os.eventfd_read(first.eventfds[3][7])
    first.close()
    second.close()


def test_a_channel_of_another_size_is_refused_until_it_is_dropped(hmm: RunningHmm) -> None:
    client = hmm.client()
    client.channel("chat:1", 2, 4096).close()
    with pytest.raises(MappingError, match="2 ranks of 4096"):
        client.channel("chat:1", 3, 4096)
    client.drop_channel("chat:1")
    client.drop_channel("chat:1")
    client.channel("chat:1", 3, 4096).close()
    for ranks, size in ((17, 4096), (0, 1), (2, 1 << 30)):
        with pytest.raises(MappingError):
            client.channel("chat:2", ranks, size)


def test_a_channel_outlives_the_client_that_made_it(hmm: RunningHmm) -> None:
    client = hmm.client()
    with started_child(HOLD, str(hmm.socket)) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
    assert eventually(lambda: usage_of(client, "d0")["reserved"] == 0)
    with pytest.raises(MappingError, match="4 ranks of 4096"):
        client.channel("chat:1", 2, 4096)


def test_free_pages_can_be_trimmed_and_used_ones_keep_their_bytes(hmm: RunningHmm) -> None:
    client = hmm.client()
    handle = client.device("d0")
    with client.reserve("d0", 20, "chat/kv") as reservation:
        with Window(handle, 20 * PAGE, writable=True) as window:
            window.map(0, reservation.pages)
            tensor_at(window, 0, (20 * PAGE,), torch.uint8).fill_(9)
        reservation.commit()
    client.free("d0", reservation.pages[5:], "chat/kv")
    assert client.trim("d0") == 15 * PAGE
    with Window(handle, 5 * PAGE, writable=False) as window:
        window.map(0, reservation.pages[:5])
        assert bool((tensor_at(window, 0, (5 * PAGE,), torch.uint8) == 9).all())


@pytest.mark.parametrize(
    "request_body",
    [
        {"op": "nonsense"},
        {},
        {"op": "device", "device": "d7"},
        {"op": "device", "device": 7},
        {"op": "device", "device": "d\u0000"},
        {"op": "reserve", "device": "d0", "pages": "many", "owner": "a"},
        {"op": "reserve", "device": "d0", "pages": True, "owner": "a"},
        {"op": "reserve", "device": "d0", "pages": -1, "owner": "a"},
        {"op": "reserve", "device": "d0", "pages": 0, "owner": "a"},
        {"op": "reserve", "device": "d0", "pages": 1, "owner": ""},
        {"op": "reserve", "device": "d0", "pages": 1, "owner": "a" * 300},
        {"op": "commit", "reservation": 12},
        {"op": "free", "device": "d0", "pages": [[0, 10**15]], "owner": "a"},
        {"op": "free", "device": "d0", "pages": [[-5, 5]], "owner": "a"},
        {"op": "free", "device": "d0", "pages": [1, 2], "owner": "a"},
        {"op": "free", "device": "d0", "pages": [[0, 1]], "owner": "a", "layouts": [1]},
        {"op": "put_layout", "layouts": {"a": 1}},
        {"op": "put_layout", "layouts": {"": {}}},
        {"op": "channel", "name": "x\ud800", "ranks": 1, "bytes_per_rank": 1},
    ],
)
def test_nonsense_in_a_well_formed_message_is_a_typed_error_and_the_connection_lives(
    hmm: RunningHmm, request_body: dict[str, object]
) -> None:
    client = hmm.client()
    with pytest.raises(MemoryPoolError) as refusal:
        client.call(dict(request_body))
    assert type(refusal.value) in (ProtocolError, MappingError)
    client.check()


def test_layouts_have_a_limit_in_number(hmm: RunningHmm) -> None:
    client = hmm.client()
    client.call({"op": "put_layout", "layouts": {f"l{n}": {} for n in range(4096)}})
    with pytest.raises(MappingError, match="4096"):
        client.put_layout("one more", {})
    client.put_layout("l7", {"replaced": True})


def test_a_second_hmm_on_the_same_socket_is_refused_and_the_first_serves_on(
    hmm: RunningHmm,
) -> None:
    argv = [sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--socket", str(hmm.socket)]
    argv += ["--node", "n1", "--devices", "[]"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "another process serves" in done.stderr
    hmm.client().check()


@pytest.mark.parametrize("devices", ["{", "[{}]", '[{"id":"d0","hbm_bytes":1,"page_bytes":7}]'])
def test_a_wrong_device_list_ends_the_start_with_a_reason(private_dir: Path, devices: str) -> None:
    argv = [sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--node", "n1"]
    argv += ["--socket", str(private_dir / "hmm.sock"), "--devices", devices]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode in (1, 2) and done.stderr.startswith("hmm: ")


def test_a_directory_that_others_may_enter_is_refused(private_dir: Path) -> None:
    private_dir.chmod(0o755)
    argv = [sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--node", "n1"]
    argv += ["--socket", str(private_dir / "hmm.sock"), "--devices", "[]"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "chmod 700" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_removes_its_socket(
    hmm: RunningHmm, number: signal.Signals
) -> None:
    client = hmm.client()
    hmm.process.send_signal(number)
    assert hmm.process.wait(10) == 0
    assert not hmm.socket.exists()
    with pytest.raises(MemoryPoolError, match="lost the HMM"):
        client.check()
    with pytest.raises(MemoryPoolError, match="no HMM answers"):
        HmmClient(hmm.socket, "late")


def test_after_a_kill_the_next_hmm_takes_the_socket_over(private_dir: Path) -> None:
    first = start_hmm(private_dir)
    first.process.kill()
    first.process.wait(10)
    assert first.socket.exists()
    second = start_hmm(private_dir)
    second.client().check()
    second.close()


def test_a_socket_path_of_any_length_works(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir(mode=0o700)
    running = start_hmm(folder)
    running.client().check()
    running.close()


def test_mappings_outlive_the_hmm(private_dir: Path) -> None:
    running = start_hmm(private_dir)
    client = running.client()
    window = Window(client.device("d0"), PAGE, writable=True)
    window.map(0, [3])
    view = tensor_at(window, 0, (PAGE,), torch.uint8)
    view.fill_(5)
    running.process.kill()
    running.process.wait(10)
    client.close()
    assert int(view.sum()) == 5 * PAGE
    window.close()


def test_a_silent_hmm_costs_a_client_its_deadline_and_no_more(hmm: RunningHmm) -> None:
    client = hmm.client(deadline_s=0.2)
    os.kill(hmm.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineError, match="did not answer usage"):
            client.usage()
    finally:
        os.kill(hmm.process.pid, signal.SIGCONT)
    with pytest.raises(MemoryPoolError, match="closed"):
        client.usage()
    hmm.client().check()


def test_descriptors_return_to_where_they_were_after_clients_come_and_go(hmm: RunningHmm) -> None:
    watcher = hmm.client()
    watcher.check()
    server_before, own_before = open_fds(hmm.process.pid), open_fds()
    for number in range(20):
        with HmmClient(hmm.socket, f"c{number}") as client:
            with client.reserve("d0", 5, "chat/kv"):
                client.channel(f"ch{number}", 4, 4096).close()
            with Window(client.device("d1"), 4 * PAGE, writable=False) as window:
                window.map(0, [1, 3, 5, 7])
        watcher.drop_channel(f"ch{number}")
    assert eventually(lambda: open_fds(hmm.process.pid) == server_before)
    assert open_fds() == own_before
    assert usage_of(watcher, "d0")["free"] == PAGES
    watcher.check()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_where_the_directory_lets_it_in(hmm: RunningHmm) -> None:
    folder = hmm.socket.parent
    opened = [hmm.socket, folder, *(p for p in folder.parents if p.stat().st_mode & 0o077 == 0)]
    modes = [(path, path.stat().st_mode & 0o7777) for path in opened]
    for path in opened:
        path.chmod(0o777)
    try:
        done = run_child(ADDRESS_OTHER_USER, str(hmm.socket))
    finally:
        for path, mode in modes:
            path.chmod(mode)
    assert done.returncode == 0, done.stderr
    hmm.client().check()


def test_calls_from_several_threads_take_turns(hmm: RunningHmm) -> None:
    client = hmm.client()
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda _: client.reserve("d0", 4, "a/kv").commit(), range(32)))
    assert sorted(page for some in pages for page in some) == list(range(128))
