"""Free pages become 2 MiB pages of the OS: which ones, by whom, and with every byte kept."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from moectl.memory.backend import DeviceHandle, PageRun
from moectl.memory.copy import copy_pages
from moectl.memory.hmm.client import HmmClient
from moectl.memory.hmm.toucher import Toucher
from moectl.memory.host import HUGE_PAGE_BYTES, HostBackend, can_gather, held_bytes
from moectl.memory.window import Window

from .conftest import RunningHmm, eventually, run_child, start_hmm, started_child

PAGE = 2 * HUGE_PAGE_BYTES
PAGES = 6

#: Writes and checks its own half of every small page for as long as it runs, and counts rounds.
WRITER = """
import sys
from moectl.memory.backend import DeviceHandle, PageRun
from moectl.memory.host import HostBackend
import ctypes
fd, page, count = map(int, sys.argv[1:])
backend, handle = HostBackend(), DeviceHandle("d0", fd, page, count, "4KiB")
address = backend.reserve(page * count)
backend.map(address, handle, PageRun(0, count), writable=True)
places = range(address + 2048, address + page * count, 4096)
for turn in range(1 << 30):
    for at in places:
        here = ctypes.c_uint32.from_address(at)
        if turn and here.value != turn - 1:
            sys.exit(f"lost a write at {at - address}: {here.value}, not {turn - 1}")
        here.value = turn
    print(turn, flush=True)
"""

#: A process to which the kernel refuses 2 MiB pages (PR_SET_THP_DISABLE).
REFUSED = """
import ctypes, os, sys
from moectl.memory.backend import PageRun
from moectl.memory.host import HostBackend, held_bytes
from moectl.memory.hmm.toucher import Toucher
assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0
page = int(sys.argv[1])
backend = HostBackend()
handle = backend.create("d0", 4 * page, page)
os.pwrite(handle.fd, b"kept", page)
print(Toucher(handle, backend).touch([PageRun(0, 4)], 1 << 40))
print(held_bytes(handle.fd), os.pread(handle.fd, 4, page))
"""


@pytest.fixture
def handle() -> Iterator[DeviceHandle]:
    """A device whose pages can become 2 MiB pages of the OS."""
    backend = HostBackend()
    made = backend.create("d0", PAGES * PAGE, PAGE)
    try:
        if not can_gather(made):
            pytest.skip(f"this machine has pages of kind {made.page_kind} to begin with")
        if not _is_gathering_possible(backend):
            pytest.skip("this kernel refuses MADV_COLLAPSE (it is older than 6.1, or has no 2 MiB)")
        yield made
    finally:
        backend.destroy(made)


def _is_gathering_possible(backend: HostBackend) -> bool:
    probe = backend.create("probe", HUGE_PAGE_BYTES, HUGE_PAGE_BYTES)
    try:
        return bool(Toucher(probe, backend).touch([PageRun(0, 1)], 1 << 40)["huge"])
    finally:
        backend.destroy(probe)


def huge_bytes(handle: DeviceHandle, run: PageRun) -> int:
    """How much of a run the kernel maps by 2 MiB: its own word, from a mapping made for this."""
    with Window(handle, run.count * handle.page_bytes, writable=False) as window:
        window.map(0, range(run.first, run.first + run.count))
        window.prefault(0, window.bytes)
        lines = Path("/proc/self/smaps").read_text().splitlines()
        heads = [at for at, line in enumerate(lines) if line.startswith(f"{window.address:x}-")]
        told = next(line for line in lines[heads[0] :] if line.startswith("ShmemPmdMapped:"))
        return int(told.split()[1]) * 1024


def test_pages_touched_ahead_are_huge_and_take_no_more_memory(handle: DeviceHandle) -> None:
    os.pwrite(handle.fd, b"kept", 2 * PAGE + 5000)
    answer = Toucher(handle, HostBackend()).touch([PageRun(1, 3)], 1 << 40)
    assert answer == {
        "touched": 3 * PAGE,
        "next": -1,
        "short": False,
        "huge": [[1, 3]],
        "refused": 0,
    }
    assert held_bytes(handle.fd) == 3 * PAGE
    assert HostBackend().untouched(handle, PageRun(0, PAGES)) == [PageRun(0, 1), PageRun(4, 2)]
    assert huge_bytes(handle, PageRun(1, 3)) == 3 * PAGE
    assert os.pread(handle.fd, 4, 2 * PAGE + 5000) == b"kept"


def test_pages_that_were_written_small_are_gathered_with_their_bytes(
    handle: DeviceHandle,
) -> None:
    data = os.urandom(2 * PAGE)
    os.pwrite(handle.fd, data, PAGE)
    assert huge_bytes(handle, PageRun(1, 2)) == 0
    answer = Toucher(handle, HostBackend()).gather([PageRun(0, PAGES)])
    assert (answer["huge"], answer["touched"], answer["next"]) == ([[1, 2]], 0, -1)
    assert huge_bytes(handle, PageRun(1, 2)) == 2 * PAGE
    assert os.pread(handle.fd, 2 * PAGE, PAGE) == data
    assert held_bytes(handle.fd) == 2 * PAGE  # pages without memory got none by it


def test_nothing_is_gathered_when_the_machine_has_no_memory_to_spare(
    handle: DeviceHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.pwrite(handle.fd, b"x" * PAGE, PAGE)
    monkeypatch.setattr("moectl.memory.hmm.toucher.spare_bytes", lambda: HUGE_PAGE_BYTES - 1)
    answer = Toucher(handle, HostBackend()).gather([PageRun(0, PAGES)])
    assert (answer["huge"], answer["short"], answer["next"]) == ([], True, 1)


def test_gathering_loses_no_write_of_a_process_that_uses_the_pages(handle: DeviceHandle) -> None:
    """A page may be reserved and filled at the very moment in which it is gathered."""
    arguments = str(handle.fd), str(PAGE), str(PAGES)
    with started_child(WRITER, *arguments, pass_fds=[handle.fd]) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        assert Toucher(handle, HostBackend()).gather([PageRun(0, PAGES)])["huge"]
        turn = int.from_bytes(os.pread(handle.fd, 4, 2048), "little")
        seen = 0
        while seen <= turn:  # it reads back all that it wrote meanwhile, and ends where one is lost
            line = writer.stdout.readline()
            assert line
            seen = int(line)


def test_a_kernel_that_refuses_leaves_small_pages_with_all_their_memory(
    handle: DeviceHandle,
) -> None:
    done = run_child(REFUSED, str(HUGE_PAGE_BYTES))
    assert done.returncode == 0, done.stderr
    size = 4 * HUGE_PAGE_BYTES
    told = {"touched": size, "next": -1, "short": False, "huge": [], "refused": 4}
    assert done.stdout.splitlines() == [str(told), f"{size} {b'kept'!r}"]


def test_a_copy_into_gathered_pages_writes_the_same_bytes(handle: DeviceHandle) -> None:
    Toucher(handle, HostBackend()).touch([PageRun(3, 2)], 1 << 40)
    data = os.urandom(2 * PAGE)
    os.pwrite(handle.fd, data, 0)
    with Window(handle, 2 * PAGE, writable=True) as window:
        window.map(0, [4, 5])  # one with memory, one without
        assert copy_pages(handle, [0, 1], window, 0) == 2 * PAGE
    assert os.pread(handle.fd, 2 * PAGE, 4 * PAGE) == data


@pytest.fixture
def touching(private_dir: Path, handle: DeviceHandle) -> Iterator[RunningHmm]:
    """An HMM with one device of large pages, none of them touched ahead yet."""
    device = {"id": "d0", "hbm_bytes": PAGES * PAGE, "page_bytes": PAGE, "pretouch_bytes": 0}
    running = start_hmm(private_dir, ["--devices", json.dumps([device])])
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.close()


def usage(client: HmmClient) -> dict[str, object]:
    return client.usage()[0]


def test_an_hmm_makes_free_pages_huge_and_leaves_those_in_use_alone(touching: RunningHmm) -> None:
    client = touching.client()
    device = client.device("d0")
    with client.reserve("d0", 2, "m/experts") as reservation:
        first, second = reservation.commit()
    data = os.urandom(2 * PAGE)
    os.pwrite(device.fd, data, first * PAGE)
    client.free("d0", [second], "m/experts")
    client.pretouch("d0")
    assert eventually(lambda: usage(client)["huge_bytes"] == (PAGES - 1) * PAGE)
    assert huge_bytes(device, PageRun(first, 1)) == 0  # somebody uses it
    assert huge_bytes(device, PageRun(second, 1)) == PAGE
    assert os.pread(device.fd, 2 * PAGE, first * PAGE) == data
    client.free("d0", [first], "m/experts")
    assert eventually(lambda: usage(client)["huge_bytes"] == PAGES * PAGE)
    assert held_bytes(device.fd) == PAGES * PAGE
    client.check()


def test_trimmed_pages_are_told_as_huge_no_longer(touching: RunningHmm) -> None:
    client = touching.client()
    client.pretouch("d0")
    assert eventually(lambda: usage(client)["huge_bytes"] == PAGES * PAGE)
    with client.reserve("d0", 1, "m/kv") as reservation:
        reservation.commit()
    assert client.trim("d0") == (PAGES - 1) * PAGE
    assert usage(client)["huge_bytes"] == PAGE  # the page in use keeps what it is made of
    client.pretouch("d0")
    assert eventually(lambda: usage(client)["huge_bytes"] == PAGES * PAGE)
