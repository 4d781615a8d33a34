"""Free pages get their memory ahead of need: by whom, how far, and never at anyone's cost."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from moectl.core.paths import is_alive, process_id
from moectl.memory.backend import PageRun
from moectl.memory.copy import copy_pages
from moectl.memory.hmm.client import HmmClient
from moectl.memory.hmm.holdings import Device, DeviceSpec
from moectl.memory.hmm.pretouch import ALL, Pretouch
from moectl.memory.hmm.state import NodeState
from moectl.memory.hmm.toucher import Toucher
from moectl.memory.host import HostBackend, held_bytes
from moectl.memory.machine import available_bytes, spare_bytes
from moectl.memory.window import Window

from .conftest import PAGE, PAGES, RunningHmm, eventually, start_hmm

MIB = 1 << 20


def usage(client: HmmClient, device: str = "d0") -> dict[str, object]:
    return next(each for each in client.usage() if each["device"] == device)


@pytest.fixture
def device() -> "tuple[HostBackend, Device]":
    state = NodeState({"cpu": HostBackend()})
    state.create(DeviceSpec("d0", 64 * PAGE, PAGE))
    return HostBackend(), state.devices["d0"]


def test_the_kernel_says_which_pages_have_memory(device: "tuple[HostBackend, Device]") -> None:
    backend, held = device
    whole = PageRun(0, 64)
    assert backend.untouched(held.handle, whole) == [whole]
    os.pwrite(held.handle.fd, b"x" * PAGE, 3 * PAGE)
    os.pwrite(held.handle.fd, b"x", 10 * PAGE)  # a page of 16 KiB that has memory in part
    os.pwrite(held.handle.fd, b"x" * PAGE, 63 * PAGE)
    assert backend.untouched(held.handle, whole) == [PageRun(0, 3), PageRun(4, 59)]
    assert backend.untouched(held.handle, PageRun(3, 1)) == []
    assert backend.untouched(held.handle, PageRun(60, 4)) == [PageRun(60, 3)]


def test_touching_gives_memory_and_changes_no_byte(device: "tuple[HostBackend, Device]") -> None:
    backend, held = device
    os.pwrite(held.handle.fd, b"kept", 5 * PAGE)
    answer = Toucher(held.handle, backend).touch([PageRun(2, 8)], 1 << 40)
    told = {"huge": [], "refused": 0}  # of pages smaller than 2 MiB
    assert answer == {"touched": 8 * PAGE, "next": -1, "short": False, **told}
    assert backend.untouched(held.handle, PageRun(0, 64)) == [PageRun(0, 2), PageRun(10, 54)]
    assert os.pread(held.handle.fd, 4, 5 * PAGE) == b"kept"
    assert held_bytes(held.handle.fd) == 8 * PAGE


def test_nothing_is_touched_when_the_machine_has_none_to_spare(
    device: "tuple[HostBackend, Device]", monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, held = device
    monkeypatch.setattr("moectl.memory.hmm.toucher.spare_bytes", lambda: 0)
    answer = Toucher(held.handle, backend).touch([PageRun(4, 8)], 1 << 40)
    assert answer == {"touched": 0, "next": 4, "short": True, "huge": [], "refused": 0}
    assert held_bytes(held.handle.fd) == 0


def test_what_others_need_is_not_spare() -> None:
    gib = 1 << 30
    assert spare_bytes(lambda: (5 * gib, 32 * gib)) == gib  # an eighth stays
    assert spare_bytes(lambda: (5 * gib, 6 * gib)) == 4 * gib  # and never less than one
    assert spare_bytes(lambda: (gib // 2, 6 * gib)) == 0


def test_the_tighter_of_machine_and_control_group_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    assert available_bytes(meminfo, tmp_path / "none") == (3000 * 1024, 4000 * 1024)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert available_bytes(meminfo, tmp_path) == (150_000, 1_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == (3000 * 1024, 4000 * 1024)


def test_a_limit_counts_the_free_pages_that_are_touched(
    device: "tuple[HostBackend, Device]",
) -> None:
    _, held = device
    ahead = Pretouch({"d0": held})
    assert ahead.wait_s(0.0) is None  # off until said otherwise
    ahead.set_limit("d0", 4 * PAGE)
    assert ahead.wait_s(0.0) is not None
    os.pwrite(held.handle.fd, b"x" * (4 * PAGE), 0)
    assert ahead.wait_s(0.0) is None  # four free pages have memory
    held.pool.reserve(2, "m/kv").commit()
    assert ahead.wait_s(0.0) is not None  # two of them are in use now
    ahead.set_limit("d0", ALL)
    assert ahead.wait_s(0.0) is not None
    ahead.set_limit("d0", 0)
    assert ahead.wait_s(0.0) is None


@pytest.fixture
def touching(private_dir: Path) -> Iterator[RunningHmm]:
    """An HMM that touches all pages of d0 ahead and none of d1."""
    devices = [
        {"id": f"d{n}", "hbm_bytes": PAGES * PAGE, "page_bytes": PAGE, "pretouch_bytes": limit}
        for n, limit in ((0, ALL), (1, 0))
    ]
    running = start_hmm(private_dir, ["--devices", json.dumps(devices)])
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.close()


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_hmm_touches_all_free_pages_of_a_device_and_none_of_the_other(
    touching: RunningHmm,
) -> None:
    client = touching.client()
    assert eventually(lambda: usage(client)["pretouch"] == "done")
    told = usage(client)
    assert (told["touched"], told["touched_ahead_bytes"]) == (PAGES, PAGES * PAGE)
    assert held_bytes(client.device("d0").fd) == PAGES * PAGE
    assert (usage(client, "d1")["touched"], usage(client, "d1")["pretouch"]) == (0, "off")
    client.check()
    assert client.trim("d0") == PAGES * PAGE  # given back, and not taken again
    assert (usage(client)["touched"], usage(client)["pretouch"]) == (0, "off")
    client.pretouch("d0", 8 * PAGE)
    assert eventually(lambda: usage(client)["touched"] == 8)


def test_the_child_ends_with_the_hmm_however_that_ends(touching: RunningHmm) -> None:
    client = touching.client()
    assert eventually(lambda: usage(client)["pretouch"] == "done")
    (pid,) = children_of(touching.process.pid)
    child = process_id(pid)
    assert child is not None
    touching.process.send_signal(signal.SIGKILL)
    touching.process.wait(10)
    assert eventually(lambda: not is_alive(child))
    client.close()


def test_an_hmm_outlives_the_child(touching: RunningHmm) -> None:
    client = touching.client()
    assert eventually(lambda: usage(client)["pretouch"] == "done")
    (pid,) = children_of(touching.process.pid)
    os.kill(pid, signal.SIGKILL)
    client.trim("d0")
    client.pretouch("d0")
    with client.reserve("d0", 4, "m/kv") as reservation:
        reservation.commit()
    client.check()


def test_a_copy_into_pages_without_memory_writes_the_same_bytes(
    device: "tuple[HostBackend, Device]",
) -> None:
    backend, held = device
    source, target = [0, 1, 2, 3, 4], [20, 9, 10, 11, 30]
    data = os.urandom(5 * PAGE)
    os.pwrite(held.handle.fd, data, 0)
    os.pwrite(held.handle.fd, b"old" * 100, 10 * PAGE)  # one of the target pages has memory
    with Window(held.handle, 6 * PAGE, writable=True) as window:
        window.map(PAGE, target)
        copied = copy_pages(held.handle, source, window, PAGE + 64, 5 * PAGE - 128)
    assert copied == 5 * PAGE - 128
    found = b"".join(os.pread(held.handle.fd, PAGE, page * PAGE) for page in target)
    assert found[64:-64] == data[: 5 * PAGE - 128]
    assert found[:64] == found[-64:] == bytes(64)
    assert backend.untouched(held.handle, PageRun(9, 3)) == []
