"""Does every back end keep the promises of `memory.backend`? New back ends join BACKENDS."""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from moectl.core.errors import MappingError
from moectl.memory.backend import Backend, DeviceHandle, PageRun
from moectl.memory.host import HostBackend, held_bytes

PAGE = 64 * 1024
PAGES = 16
BACKENDS = {"host": HostBackend}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = BACKENDS[request.param]()
    return made


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


def write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def read(address: int, count: int) -> bytes:
    return ctypes.string_at(address, count)


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


def test_reserved_addresses_are_inaccessible_and_given_up_on_release(backend: Backend) -> None:
    start = backend.reserve(4 * PAGE)
    assert start % (2 * 1024 * 1024) == 0
    assert protection_at(start).startswith("---")
    backend.release(start, 4 * PAGE)
    assert protection_at(start) in ("absent", "---p") or protection_at(start)[0] != "r"


def test_a_page_shows_the_same_bytes_wherever_it_is_mapped(
    backend: Backend, device: DeviceHandle, address: int
) -> None:
    backend.map(address, device, PageRun(5, 2), writable=True)
    backend.map(address + 4 * PAGE, device, PageRun(6, 1), writable=False)
    write(address + PAGE, b"second page")
    assert read(address + 4 * PAGE, 11) == b"second page"
    assert protection_at(address)[:2] == "rw"
    assert protection_at(address + 4 * PAGE)[:2] == "r-"


def test_mapping_again_replaces_the_pages_below_an_address(
    backend: Backend, device: DeviceHandle, address: int
) -> None:
    backend.map(address, device, PageRun(0, 2), writable=True)
    write(address, b"zero")
    write(address + PAGE, b"one!")
    backend.map(address, device, PageRun(1, 1), writable=True)
    assert (read(address, 4), read(address + PAGE, 4)) == (b"one!", b"one!")


def test_unmapped_addresses_stay_reserved_and_pages_keep_their_bytes(
    backend: Backend, device: DeviceHandle, address: int
) -> None:
    backend.map(address, device, PageRun(3, 1), writable=True)
    write(address, b"kept")
    backend.unmap(address, PAGE)
    assert protection_at(address).startswith("---")
    backend.map(address + PAGE, device, PageRun(3, 1), writable=False)
    assert read(address + PAGE, 4) == b"kept"


def test_prefaulted_pages_are_present_and_unmapped_ones_are_refused(
    backend: Backend, device: DeviceHandle, address: int
) -> None:
    backend.map(address, device, PageRun(0, 4), writable=True)
    backend.prefault(address, 4 * PAGE, writable=True)
    assert held_bytes(device.fd) == 4 * PAGE
    with pytest.raises(MappingError):
        backend.prefault(address + 4 * PAGE, PAGE, writable=True)


def test_trimmed_pages_give_their_memory_back_and_read_as_zeros(
    backend: Backend, device: DeviceHandle, address: int
) -> None:
    backend.map(address, device, PageRun(0, 4), writable=True)
    backend.prefault(address, 4 * PAGE, writable=True)
    backend.unmap(address, 4 * PAGE)
    assert backend.trim(device, PageRun(1, 2)) == 2 * PAGE
    assert held_bytes(device.fd) == 2 * PAGE
    backend.map(address, device, PageRun(1, 1), writable=False)
    assert read(address, 8) == bytes(8)


def test_what_is_mapped_outlives_the_owner(backend: Backend, address: int) -> None:
    handle = backend.create("d9", PAGES * PAGE, PAGE)
    backend.map(address, handle, PageRun(0, 1), writable=True)
    write(address, b"alive")
    backend.destroy(handle)
    assert read(address, 5) == b"alive"


def test_a_closed_handle_is_refused_with_a_reason(backend: Backend, address: int) -> None:
    handle = backend.create("d9", PAGES * PAGE, PAGE)
    backend.destroy(handle)
    with pytest.raises(MappingError, match=r"map pages 0\.\.0 of device d9"):
        backend.map(address, handle, PageRun(0, 1), writable=True)


def test_host_pages_cannot_be_resized_but_stay_writable_for_ever(device: DeviceHandle) -> None:
    for size in (device.bytes - PAGE, device.bytes + PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(device.fd, size)
    assert fcntl.fcntl(device.fd, 1034) == 0x1 | 0x2 | 0x4  # F_GET_SEALS: seal, shrink, grow
    with mmap.mmap(device.fd, device.bytes) as whole:
        whole[:3] = b"abc"


def test_host_pages_are_of_a_kind_that_is_told(device: DeviceHandle) -> None:
    assert device.page_kind == "4KiB"
    handle = HostBackend().create("d1", 4 << 20, 2 << 20)
    assert handle.page_kind in ("4KiB", "thp-2MiB", "hugetlb-2MiB")
    os.close(handle.fd)
