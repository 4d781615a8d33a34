"""Does a window map what it is told, refuse what is wrong, and never let a stale pointer read?"""

import faulthandler
import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moectl.core.errors import MappingError
from moectl.memory.backend import DeviceHandle, PageRun
from moectl.memory.host import HostBackend
from moectl.memory.layout import ExpertLayout, ExpertShape, SharedLayout
from moectl.memory.tensors import (
    expert_tensors,
    is_inside,
    shared_tensors,
    strided_at,
    tensor_at,
    torch_dtype,
)
from moectl.memory.window import Window

PAGE = 16 * 1024


@pytest.fixture
def handle() -> Iterator[DeviceHandle]:
    backend = HostBackend()
    made = backend.create("d0", 64 * PAGE, PAGE)
    yield made
    backend.destroy(made)


def maps_at(window: Window) -> list[str]:
    """Protection of each mapping inside the window's addresses."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start < window.address + window.bytes and end > window.address:
            found.append(line.split()[1])
    return found


def death_of(action: object) -> int:
    """The signal that ends a forked child which does something."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        action()  # type: ignore[operator]
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_consecutive_pages_become_one_mapping(handle: DeviceHandle) -> None:
    calls: list[PageRun] = []

    class Counting(HostBackend):
        def map(self, address: int, of: DeviceHandle, run: PageRun, writable: bool) -> None:
            calls.append(run)
            super().map(address, of, run, writable)

    with Window(handle, 8 * PAGE, True, Counting()) as window:
        window.map(0, [10, 11, 12, 3, 4, 30])
        assert calls == [PageRun(10, 3), PageRun(3, 2), PageRun(30, 1)]
        assert window.pages() == {
            0: 10, PAGE: 11, 2 * PAGE: 12, 3 * PAGE: 3, 4 * PAGE: 4, 5 * PAGE: 30,
        }  # fmt: skip


def test_a_tensor_shows_the_page_below_it_after_a_remap(handle: DeviceHandle) -> None:
    with Window(handle, 3 * PAGE, True) as window:
        window.map(0, [0, 1, 2])
        views = [tensor_at(window, n * PAGE, (PAGE // 4,), torch.float32) for n in range(3)]
        for number, view in enumerate(views):
            view.fill_(number)
        window.remap(PAGE, [2])
        assert [int(view[-1]) for view in views] == [0, 2, 2]
        assert all(is_inside(view, window) for view in views)


@pytest.mark.parametrize(
    ("offset", "pages", "reason"),
    [
        (100, [1], "multiples of the page"),
        (8 * PAGE, [1], "outside"),
        (-PAGE, [1], "outside"),
        (7 * PAGE, [1, 2], "outside"),
        (PAGE, [64], "not one of the 64 pages"),
        (PAGE, [-1], "not one of the 64 pages"),
        (0, [5], "already maps page 0"),
    ],
)
def test_wrong_places_and_pages_are_typed_errors_and_map_nothing(
    handle: DeviceHandle, offset: int, pages: list[int], reason: str
) -> None:
    with Window(handle, 8 * PAGE, True) as window:
        window.map(0, [0])
        with pytest.raises(MappingError, match=reason):
            window.map(offset, pages)
        assert window.pages() == {0: 0}


def test_unmapping_nothing_is_refused_and_unmapped_places_can_be_mapped_again(
    handle: DeviceHandle,
) -> None:
    with Window(handle, 4 * PAGE, True) as window:
        window.map(0, [7, 8])
        with pytest.raises(MappingError, match="nothing to unmap"):
            window.unmap(PAGE, 2 * PAGE)
        window.unmap(0, 2 * PAGE)
        assert maps_at(window) == ["---p"]
        window.map(PAGE, [7])
        with pytest.raises(MappingError, match="nothing to prefault"):
            window.prefault(0, PAGE)
        window.prefault(PAGE, PAGE)


def test_a_closed_window_refuses_everything_and_closing_twice_is_harmless(
    handle: DeviceHandle,
) -> None:
    window = Window(handle, PAGE, True)
    window.close()
    window.close()
    for act in (
        lambda: window.map(0, [0]),
        lambda: window.unmap(0, PAGE),
        lambda: tensor_at(window, 0, (4,), torch.float32),
    ):
        with pytest.raises(MappingError, match="closed"):
            act()


def test_addresses_stay_reserved_until_the_last_tensor_is_gone(handle: DeviceHandle) -> None:
    window = Window(handle, PAGE, True)
    window.map(0, [0])
    view = tensor_at(window, 0, (PAGE // 4,), torch.float32).view(-1, 8)[3]
    window.close()
    gc.collect()
    assert maps_at(window) == ["---p"]
    assert death_of(view.sum) == -signal.SIGSEGV
    del view
    gc.collect()
    assert "---p" not in maps_at(window)


def test_a_forgotten_window_keeps_its_pages_for_its_tensors_and_no_longer(
    handle: DeviceHandle,
) -> None:
    window = Window(handle, PAGE, True)
    window.map(0, [0])
    view = tensor_at(window, 0, (PAGE // 4,), torch.float32)
    view.fill_(7)
    start = window.address
    del window
    gc.collect()
    assert float(view.sum()) == 7 * PAGE // 4
    del view
    gc.collect()
    assert f"{start:x}-" not in Path("/proc/self/maps").read_text()


def test_writing_through_a_read_only_window_is_a_segmentation_fault(handle: DeviceHandle) -> None:
    with Window(handle, PAGE, writable=False) as window:
        window.map(0, [0])
        view = tensor_at(window, 0, (4,), torch.float32)
        assert float(view.sum()) == 0
        assert death_of(lambda: view.fill_(1)) == -signal.SIGSEGV


def test_tensors_outside_the_window_or_misaligned_are_refused(handle: DeviceHandle) -> None:
    with Window(handle, PAGE, True) as window:
        for offset, count in ((PAGE - 4, 2), (-4, 1), (2, 1)):
            with pytest.raises(MappingError):
                tensor_at(window, offset, (count,), torch.float32)
        with pytest.raises(MappingError):
            strided_at(window, 0, (2, 1), (PAGE // 4, 1), torch.float32)
        assert tensor_at(window, 0, (0, 5), torch.bfloat16).shape == (0, 5)
    with pytest.raises(MappingError):
        torch_dtype("int3")


def test_shared_tensors_stand_where_the_layout_says(handle: DeviceHandle) -> None:
    layout = SharedLayout.pack([("a", (3, 5), "float32"), ("b", (7,), "bfloat16")])
    with Window(handle, layout.bytes, True) as window:
        window.map(0, [9])
        tensors = shared_tensors(window, layout)
        tensors["a"].fill_(1)
        tensors["b"].fill_(2)
        assert tensors["b"].data_ptr() == window.address + 64
        assert (float(tensors["a"].sum()), float(tensors["b"].sum())) == (15, 14)


def test_expert_tensors_of_a_slot_are_neighbours_and_contiguous(handle: DeviceHandle) -> None:
    shape = ExpertShape(hidden=48, expert_hidden=40, dtype="float32")
    pages = {(0, 4): (3, 4), (1, 2): (8, 2)}
    layout = ExpertLayout.build(shape, PAGE, pages)
    with Window(handle, layout.bytes, True) as window:
        window.map(0, layout.pages)
        gate_up, down = expert_tensors(window, layout)
        assert (gate_up.shape, down.shape) == ((2, 80, 48), (2, 48, 40))
        assert gate_up[1].is_contiguous() and down[1].is_contiguous()
        assert down[1].data_ptr() == window.address + 2 * PAGE + 80 * 48 * 4
        assert is_inside(down[1], window)


def test_windows_may_be_used_from_several_threads(handle: DeviceHandle) -> None:
    with Window(handle, 64 * PAGE, True) as window:

        def work(place: int) -> None:
            for _ in range(50):
                window.map(place * PAGE, [place])
                window.unmap(place * PAGE, PAGE)
            window.map(place * PAGE, [place])

        threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert window.pages() == {place * PAGE: place for place in range(8)}
