"""Does every back end keep the promises of `memory.backend`?

"host" runs on memfds, "ascend" on `acl_contract.c`, a library that does what ACL does and refuses
what ACL refuses, "cuda" on a GPU where there is one. `where` says what only some of them can show.
"""

import ctypes
import fcntl
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moectl.core.errors import MappingError
from moectl.memory.ascend import AscendBackend
from moectl.memory.backend import Backend, DeviceHandle, PageRun
from moectl.memory.cuda import CudaBackend
from moectl.memory.host import HostBackend, held_bytes
from moectl.memory.window import Window

PAGE = 2 * 1024 * 1024
PAGES = 16


@pytest.fixture(scope="session")
def acl_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the ACL contract library")
    source = Path(__file__).with_name("acl_contract.c")
    library = tmp_path_factory.mktemp("acl") / "libascendcl.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True, timeout=120)
    return str(library)


def cuda_backend() -> Backend:
    """The real one, where a GPU is; the test is skipped otherwise."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    try:
        torch.cuda.init()
        return CudaBackend()
    except MappingError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["ascend", "cuda", "host"])
def where(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def backend(where: str, request: pytest.FixtureRequest) -> Backend:
    if where == "cuda":
        return cuda_backend()
    if where == "ascend":
        return AscendBackend(request.getfixturevalue("acl_library"))
    return HostBackend()


@pytest.fixture
def device(backend: Backend) -> Iterator[DeviceHandle]:
    handle = backend.create("d0", PAGES * PAGE, PAGE)
    yield handle
    backend.destroy(handle)


@pytest.fixture
def address(backend: Backend) -> Iterator[int]:
    start = backend.reserve(8 * PAGE)
    yield start
    backend.release(start, 8 * PAGE)


class Place:
    """Reads and writes device addresses as that device does it."""

    def __init__(self, where: str) -> None:
        self.cuda: Any = None
        if where == "cuda":
            from cuda.bindings import driver  # type: ignore[import-not-found,unused-ignore]

            self.cuda = driver

    def write(self, address: int, data: bytes) -> None:
        if self.cuda is None:
            ctypes.memmove(address, data, len(data))
        else:
            assert int(self.cuda.cuMemcpyHtoD(address, data, len(data))[0]) == 0

    def read(self, address: int, count: int) -> bytes:
        if self.cuda is None:
            return ctypes.string_at(address, count)
        data = bytearray(count)
        assert int(self.cuda.cuMemcpyDtoH(data, address, count)[0]) == 0
        return bytes(data)


@pytest.fixture
def place(where: str) -> Place:
    return Place(where)


def only_on(where: str, *kinds: str) -> None:
    if where not in kinds:
        pytest.skip(f"{where} cannot show this")


def protection_at(address: int) -> str:
    with open("/proc/self/maps") as lines:
        for line in lines:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return line.split()[1]
    return "absent"


def test_a_device_has_the_pages_that_fit_into_its_hbm_and_no_more(backend: Backend) -> None:
    handle = backend.create("d0", 3 * PAGE + PAGE // 2, PAGE)
    assert (handle.page_count, handle.bytes) == (3, 3 * PAGE)
    backend.destroy(handle)


@pytest.mark.parametrize(("hbm", "page"), [(PAGE, 1000), (PAGE, 0), (PAGE - 1, PAGE), (0, PAGE)])
def test_impossible_sizes_are_refused(backend: Backend, hbm: int, page: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MappingError):
        backend.create("d0", hbm, page)
    assert len(os.listdir("/proc/self/fd")) == before


def test_reserved_addresses_are_inaccessible_and_given_up_on_release(
    backend: Backend, where: str
) -> None:
    start = backend.reserve(4 * PAGE)
    assert start % PAGE == 0
    if where != "cuda":
        assert protection_at(start).startswith("---")
    backend.release(start, 4 * PAGE)
    if where != "cuda":
        assert protection_at(start) in ("absent", "---p") or protection_at(start)[0] != "r"


def test_a_page_shows_the_same_bytes_wherever_it_is_mapped(
    backend: Backend, device: DeviceHandle, address: int, place: Place, where: str
) -> None:
    backend.map(address, device, PageRun(5, 2), writable=True)
    backend.map(address + 4 * PAGE, device, PageRun(6, 1), writable=False)
    place.write(address + PAGE, b"second page")
    assert place.read(address + 4 * PAGE, 11) == b"second page"
    if where != "cuda":
        assert protection_at(address)[:2] == "rw"
        assert protection_at(address + 4 * PAGE)[:2] == "r-"


def test_mapping_again_replaces_the_pages_below_an_address(
    backend: Backend, device: DeviceHandle, address: int, place: Place
) -> None:
    backend.map(address, device, PageRun(0, 2), writable=True)
    place.write(address, b"zero")
    place.write(address + PAGE, b"one!")
    backend.map(address, device, PageRun(1, 1), writable=True)
    assert (place.read(address, 4), place.read(address + PAGE, 4)) == (b"one!", b"one!")


def test_unmapped_addresses_stay_reserved_and_pages_keep_their_bytes(
    backend: Backend, device: DeviceHandle, address: int, place: Place, where: str
) -> None:
    backend.map(address, device, PageRun(3, 1), writable=True)
    place.write(address, b"kept")
    backend.unmap(address, PAGE)
    if where != "cuda":
        assert protection_at(address).startswith("---")
    backend.map(address + PAGE, device, PageRun(3, 1), writable=False)
    assert place.read(address + PAGE, 4) == b"kept"


def test_a_range_is_unmapped_with_the_holes_in_it(
    backend: Backend, device: DeviceHandle, address: int, place: Place
) -> None:
    backend.map(address, device, PageRun(0, 1), writable=True)
    backend.map(address + 3 * PAGE, device, PageRun(1, 1), writable=True)
    backend.unmap(address, 8 * PAGE)
    backend.map(address, device, PageRun(0, 8), writable=True)
    place.write(address + 7 * PAGE, b"x")


def test_prefault_refuses_what_is_not_mapped(
    backend: Backend, device: DeviceHandle, address: int, where: str
) -> None:
    backend.map(address, device, PageRun(0, 4), writable=True)
    backend.prefault(address, 4 * PAGE, writable=True)
    if where == "host":
        assert held_bytes(device.fd) == 4 * PAGE
    with pytest.raises(MappingError):
        backend.prefault(address + 4 * PAGE, PAGE, writable=True)


def test_bytes_are_copied_between_mapped_places(
    backend: Backend, device: DeviceHandle, address: int, place: Place
) -> None:
    backend.map(address, device, PageRun(0, 2), writable=True)
    place.write(address + 7, b"moved")
    backend.copy(address + PAGE + 100, address + 7, 5)
    assert place.read(address + PAGE + 100, 5) == b"moved"


def test_trimmed_pages_give_their_memory_back_and_read_as_zeros(
    backend: Backend, device: DeviceHandle, address: int, place: Place, where: str
) -> None:
    if where != "host":
        assert backend.trim(device, PageRun(1, 2)) == 0  # pages are created ahead and kept
        return
    backend.map(address, device, PageRun(0, 4), writable=True)
    backend.prefault(address, 4 * PAGE, writable=True)
    backend.unmap(address, 4 * PAGE)
    assert backend.trim(device, PageRun(1, 2)) == 2 * PAGE
    assert held_bytes(device.fd) == 2 * PAGE
    backend.map(address, device, PageRun(1, 1), writable=False)
    assert place.read(address, 8) == bytes(8)


def test_what_is_mapped_outlives_the_owner(backend: Backend, address: int, place: Place) -> None:
    handle = backend.create("d0", PAGES * PAGE, PAGE)
    backend.map(address, handle, PageRun(0, 1), writable=True)
    place.write(address, b"alive")
    backend.destroy(handle)
    assert place.read(address, 5) == b"alive"


def test_a_closed_handle_is_refused_with_a_reason(backend: Backend, address: int) -> None:
    handle = backend.create("d0", PAGES * PAGE, PAGE)
    backend.destroy(handle)
    with pytest.raises(MappingError, match=r"map pages 0\.\.0 of device d0"):
        backend.map(address, handle, PageRun(0, 1), writable=True)


def test_a_window_of_any_device_checks_what_it_is_asked_for(
    backend: Backend, device: DeviceHandle, place: Place
) -> None:
    with Window(device, 4 * PAGE, writable=True, mapper=backend) as window:
        window.map(0, [3, 4, 9])
        place.write(window.address + 2 * PAGE, b"nine")
        for wrong in (
            lambda: window.map(0, [5]),  # double map
            lambda: window.map(100, [5]),  # wrong alignment
            lambda: window.map(3 * PAGE, [5, 6]),  # outside
            lambda: window.map(3 * PAGE, [PAGES]),  # a foreign page
            lambda: window.unmap(3 * PAGE, PAGE),  # nothing there
        ):
            with pytest.raises(MappingError):
                wrong()
        window.remap(0, [9])
        assert place.read(window.address, 4) == b"nine"
    with pytest.raises(MappingError, match="closed"):
        window.map(0, [1])


ATTACH = """
import json, sys, ctypes
from moectl.memory.backend import DeviceHandle, PageRun, Shares
from moectl.memory.backends import backend_of
from moectl.memory.ascend import AscendBackend
from moectl.core.errors import MappingError
kind, library = sys.argv[1], sys.argv[2]
if kind == "cuda":
    import torch; torch.cuda.init()
backend = AscendBackend(library) if kind == "ascend" else backend_of(kind)
print(backend.process(), flush=True)
told = json.loads(sys.stdin.readline())
handle = DeviceHandle(*told["handle"])
run = PageRun(*told["run"])
try:
    backend.adopt(handle, run, Shares(tuple(told["fds"]), tuple(told["values"])))
except MappingError:
    print("refused"); sys.exit(0)
address = backend.reserve(2 * handle.page_bytes)
backend.map(address, handle, run, True)
if kind == "cuda":
    from cuda.bindings import driver
    data = bytearray(6); driver.cuMemcpyDtoH(data, address, 6); print(bytes(data).decode())
    driver.cuMemcpyHtoD(address + handle.page_bytes, b"answer", 6)
else:
    print(ctypes.string_at(address, 6).decode())
    ctypes.memmove(address + handle.page_bytes, b"answer", 6)
backend.release(address, 2 * handle.page_bytes)
"""


@pytest.fixture(params=[True, False])
def is_allowed(request: pytest.FixtureRequest, where: str) -> bool:
    if not request.param:
        only_on(where, "ascend")  # elsewhere, having the descriptor is the permission
    return bool(request.param)


@pytest.fixture
def library(where: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("acl_library")) if where == "ascend" else "-"


def test_another_process_maps_what_was_shared_with_it(
    backend: Backend,
    device: DeviceHandle,
    address: int,
    place: Place,
    is_allowed: bool,
    library: str,
) -> None:
    backend.map(address, device, PageRun(2, 2), writable=True)
    place.write(address, b"shared")
    keep = [device.fd] if device.fd >= 0 else []
    first = backend.share(device, PageRun(2, 2), os.getpid())  # a second share is no second export
    for fd in first.fds:
        os.close(fd)
    kind = device.kind
    argv = [sys.executable, "-P", "-c", ATTACH, kind, library]
    # Descriptors must exist before the child does; a number is shared once its name is known.
    given = backend.share(device, PageRun(2, 2), 0) if kind == "cuda" else None
    fds = list(given.fds) if given is not None else []
    child = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[*keep, *fds]
    )
    assert child.stdin is not None and child.stdout is not None
    process = int(child.stdout.readline())
    values = first.values
    if kind == "ascend" and is_allowed:
        values = backend.share(device, PageRun(2, 2), process).values
        assert values == first.values
    handle = [device.device_id, device.fd, PAGE, PAGES, device.page_kind, device.kind]
    told = {"handle": handle, "run": [2, 2], "fds": fds, "values": list(values)}
    out, _ = child.communicate(json.dumps(told) + "\n", timeout=120)
    for fd in fds:
        os.close(fd)
    assert child.returncode == 0
    assert out.strip() == ("shared" if is_allowed else "refused")
    if is_allowed:
        assert place.read(address + PAGE, 6) == b"answer"


def test_host_pages_cannot_be_resized_but_stay_writable_for_ever(
    device: DeviceHandle, where: str
) -> None:
    only_on(where, "host")
    for size in (device.bytes - PAGE, device.bytes + PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(device.fd, size)
    assert fcntl.fcntl(device.fd, 1034) == 0x1 | 0x2 | 0x4  # F_GET_SEALS: seal, shrink, grow
    with mmap.mmap(device.fd, device.bytes) as whole:
        whole[:3] = b"abc"


def test_host_pages_are_of_a_kind_that_is_told() -> None:
    small = HostBackend().create("d0", 4 << 16, 1 << 16)
    assert small.page_kind == "4KiB"
    large = HostBackend().create("d1", 4 << 20, 2 << 20)
    assert large.page_kind in ("4KiB", "thp-2MiB", "hugetlb-2MiB")
    for handle in (small, large):
        os.close(handle.fd)
