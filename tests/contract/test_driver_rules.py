"""What do devices whose pages are handles of a driver refuse that host memory would allow?

Tried on the library that stands for ACL (`acl_contract.c`), the strictest of all.
"""

import os

import pytest

from moectl.core.errors import MappingError
from moectl.memory.ascend import AscendBackend
from moectl.memory.backend import DeviceHandle, PageRun

from .test_backend_contract import PAGE, acl_library, address, device  # noqa: F401  fixtures

# ruff: noqa: F811  a fixture's name is a parameter's name
Backend = AscendBackend


@pytest.fixture
def backend(acl_library: str) -> AscendBackend:
    return AscendBackend(acl_library)


def test_a_window_never_mixes_devices(backend: Backend, device: DeviceHandle, address: int) -> None:
    other = backend.create("d1", 2 * PAGE, PAGE)
    backend.map(address, device, PageRun(0, 1), writable=True)
    with pytest.raises(MappingError, match="never mixes"):
        backend.map(address + PAGE, other, PageRun(0, 1), writable=True)
    backend.unmap(address, PAGE)
    backend.map(address + PAGE, other, PageRun(0, 1), writable=True)
    backend.unmap(address + PAGE, PAGE)
    backend.destroy(other)


def test_a_page_of_a_driver_goes_whole(
    backend: Backend, device: DeviceHandle, address: int
) -> None:
    backend.map(address, device, PageRun(0, 2), writable=True)
    with pytest.raises(MappingError, match="goes whole"):
        backend.unmap(address, PAGE // 2)
    with pytest.raises(MappingError, match="not in a reserved window"):
        backend.map(address + 8 * PAGE, device, PageRun(0, 1), writable=True)


def test_a_device_without_room_gives_back_what_it_got(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setenv("ACL_CONTRACT_BYTES", str(5 * PAGE))
    with pytest.raises(MappingError, match=r"5 of 16 pages could be created"):
        backend.create("d0", 16 * PAGE, PAGE)
    assert len(os.listdir("/proc/self/fd")) == before
    backend.destroy(backend.create("d0", 5 * PAGE, PAGE))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_kind_without_its_library_says_what_to_install() -> None:
    with pytest.raises(MappingError, match="need lib-that-is-not-there"):
        AscendBackend("lib-that-is-not-there.so")
