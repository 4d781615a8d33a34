"""What do devices have in common whose pages are handles of a driver, one handle a page?

CUDA and Ascend offer the same acts under other names: create, export, import, reserve, map, set
access, unmap, release. This file keeps the books for both by the stricter one's rules, and a driver
(`DriverCalls`) makes the calls:

    a page is mapped whole, at offset 0 of its handle, and unmapped whole
    access is set once for each run of pages, because it is the dear call
    a window never mixes devices, nor pages created here with imported ones
    a handle is released when its owner has given it up and nothing is mapped from it
    a page is exported once; the same number or descriptor is given to everyone after

All pages of a device are created ahead (creating one costs a hundred mappings) and never trimmed.
A failed call undoes what the same request did before it. Addresses are those of the device: nothing
here touches what is behind them. Thread-safe by one lock.
"""

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ..core.errors import MappingError, MemoryPoolError
from .backend import DeviceHandle, PageRun, Shares


class DriverCalls(Protocol):
    """One driver's calls; each raises MappingError or MemoryPoolError with the driver's word."""

    kind: str
    page_kind: str
    shares_fds: bool  # what `export` returns is a descriptor, else a number

    def granularity(self, device: int) -> int:
        """Smallest page of a device in bytes."""
        ...

    def create(self, device: int, bytes: int) -> object:
        """Physical memory; returns its handle."""
        ...

    def release(self, handle: object) -> None:
        """Give a handle up; memory lives while it is mapped or held elsewhere."""
        ...

    def export(self, handle: object) -> int:
        """A descriptor or a number that another process can import; once per handle."""
        ...

    def allow(self, exported: int, process: int) -> None:
        """Let a process import what was exported."""
        ...

    def import_(self, exported: int, device: int) -> object:
        """A handle of memory that another process created."""
        ...

    def process(self) -> int:
        """How the driver names this process."""
        ...

    def reserve(self, bytes: int) -> int:
        """Addresses."""
        ...

    def free(self, address: int, bytes: int) -> None:
        """Give addresses up."""
        ...

    def map(self, address: int, bytes: int, handle: object) -> None:
        """Map one whole handle."""
        ...

    def access(self, address: int, bytes: int, device: int, writable: bool) -> None:
        """Let the device read, or read and write, a mapped range."""
        ...

    def unmap(self, address: int, bytes: int) -> None:
        """Unmap what `map` mapped, whole."""
        ...

    def copy(self, target: int, source: int, bytes: int) -> None:
        """Copy between mapped addresses and wait for it."""
        ...


@dataclass(slots=True)
class _Page:
    """One handle of this process."""

    handle: object
    imported: bool
    maps: int = 0
    given_up: bool = False
    exported: int | None = None


@dataclass(slots=True)
class _Window:
    """A reserved range and what is mapped in it."""

    bytes: int
    units: dict[int, tuple[int, _Page]] = field(default_factory=dict)  # address -> (bytes, page)
    nature: tuple[str, bool] | None = None  # device and whether imported, while anything is mapped


class PagedBackend:
    """`Backend` over a driver; keeps every handle of this process. One per process and kind."""

    def __init__(self, driver: DriverCalls) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._pages: dict[tuple[str, int], _Page] = {}
        self._windows: dict[int, _Window] = {}

    # The owner's half.

    def create(self, device_id: str, hbm_bytes: int, page_bytes: int) -> DeviceHandle:
        """Create all pages of a device now. Raises MappingError on sizes the driver cannot do."""
        number = device_number(device_id)
        grain = self._driver.granularity(number)
        if page_bytes <= 0 or page_bytes % grain or hbm_bytes < page_bytes:
            raise MappingError(
                f"device {device_id}: hbm {hbm_bytes}, pageSize {page_bytes}: pages of this device "
                f"are multiples of {grain}",
                next_step="choose a pageSize that is a multiple, and hbm for at least one page",
            )
        count = hbm_bytes // page_bytes
        made: list[_Page] = []
        try:
            for _ in range(count):
                made.append(_Page(self._driver.create(number, page_bytes), imported=False))
        except MemoryPoolError as error:
            for page in made:
                self._driver.release(page.handle)
            raise MappingError(
                f"device {device_id}: {len(made)} of {count} pages could be created: "
                f"{error.message}",
                next_step="lower hbm, or end what else uses this device",
            ) from error
        with self._lock:
            self._pages.update({(device_id, at): page for at, page in enumerate(made)})
        page_kind, kind = self._driver.page_kind, self._driver.kind
        return DeviceHandle(device_id, -1, page_bytes, count, page_kind, kind)

    def trim(self, handle: DeviceHandle, run: PageRun) -> int:
        """Nothing: creating a page again would cost a hundred times what mapping it does."""
        return 0

    def share(self, handle: DeviceHandle, run: PageRun, process: int) -> Shares:
        """Descriptors (the receiver's) or numbers of these pages, for one process."""
        given: list[int] = []
        with self._lock:
            for page in self._known(handle, run):
                if page.exported is None:
                    page.exported = self._driver.export(page.handle)
                self._driver.allow(page.exported, process)
                given.append(page.exported)
        if self._driver.shares_fds:
            return Shares(fds=tuple(os.dup(fd) for fd in given))
        return Shares(values=tuple(given))

    def destroy(self, handle: DeviceHandle) -> None:
        """Give up every page of a device; those that are mapped here live until unmapped."""
        with self._lock:
            gone = [key for key in self._pages if key[0] == handle.device_id]
            for key in gone:
                page = self._pages.pop(key)
                page.given_up = True
                self._release_unused(page)

    # The mapper's half.

    def process(self) -> int:
        """How the owner's driver names this process."""
        return self._driver.process()

    def adopt(self, handle: DeviceHandle, run: PageRun, shares: Shares) -> None:
        """Import pages; known ones are left alone. Descriptors are closed here."""
        number = device_number(handle.device_id)
        tokens = shares.fds or shares.values
        try:
            if len(tokens) != run.count:
                raise MappingError(f"{len(tokens)} shares for {run.count} pages")
            with self._lock:
                for at, token in enumerate(tokens):
                    key = (handle.device_id, run.first + at)
                    if key not in self._pages:
                        self._pages[key] = _Page(self._driver.import_(token, number), imported=True)
        finally:
            for fd in shares.fds:
                os.close(fd)

    def reserve(self, bytes: int) -> int:
        """Reserve addresses, aligned as the driver does it."""
        address = self._driver.reserve(bytes)
        with self._lock:
            self._windows[address] = _Window(bytes)
        return address

    def map(self, address: int, handle: DeviceHandle, run: PageRun, writable: bool) -> None:
        """Map pages one by one and set access once, replacing what is mapped there."""
        size = handle.page_bytes
        with self._lock:
            pages = self._known(handle, run)
            window = self._window_of(address, run.count * size)
            self._unmap(window, address, run.count * size)
            nature = (handle.device_id, pages[0].imported)
            if any(page.imported != nature[1] for page in pages) or (
                window.nature is not None and window.nature != nature
            ):
                raise MappingError(
                    f"{_words(handle, run)}: a window of {window.nature} cannot hold them too: it "
                    "never mixes devices, nor own pages with imported ones"
                )
            try:
                for at, page in enumerate(pages):
                    self._driver.map(address + at * size, size, page.handle)
                    window.units[address + at * size] = (size, page)
                    page.maps += 1
                number = device_number(handle.device_id)
                self._driver.access(address, run.count * size, number, writable)
            except MemoryPoolError:
                self._unmap(window, address, run.count * size)
                raise
            window.nature = nature

    def unmap(self, address: int, bytes: int) -> None:
        """Unmap every page in a range; what is not mapped is left alone."""
        with self._lock:
            self._unmap(self._window_of(address, bytes), address, bytes)

    def prefault(self, address: int, bytes: int, writable: bool) -> None:
        """Nothing to do: pages are there from the start. MappingError where none is mapped."""
        with self._lock:
            window = self._window_of(address, bytes)
            covered = sum(size for at, size in self._units(window, address, bytes))
        if covered != bytes:
            raise MappingError(f"prefault {bytes} bytes: only {covered} are mapped")

    def copy(self, target: int, source: int, bytes: int) -> None:
        """Copy between mapped addresses of devices."""
        self._driver.copy(target, source, bytes)

    def untouched(self, handle: DeviceHandle, run: PageRun) -> list[PageRun]:
        """None: a driver's pages are made whole, ahead of need."""
        return []

    def write(self, handle: DeviceHandle, offset: int, source: int, bytes: int) -> None:
        """Refused: a driver's pages are only reached through a mapping."""
        raise MappingError(f"device {handle.device_id} cannot be written without a mapping")

    def release(self, address: int, bytes: int) -> None:
        """Unmap what is left and give the addresses up."""
        with self._lock:
            window = self._windows.pop(address, None)
            if window is None:
                raise MappingError(f"release {bytes} bytes: no window begins there")
            self._unmap(window, address, window.bytes)
        self._driver.free(address, window.bytes)

    # Parts; the lock is held.

    def _known(self, handle: DeviceHandle, run: PageRun) -> list[_Page]:
        keys = [(handle.device_id, run.first + at) for at in range(run.count)]
        missing = [key for key in keys if key not in self._pages]
        if missing or not keys:
            raise MappingError(
                f"cannot map {_words(handle, run)}: {len(missing)} of them are not known here",
                next_step="ask the HMM to share them, and adopt them",
            )
        return [self._pages[key] for key in keys]

    def _window_of(self, address: int, bytes: int) -> _Window:
        for start, window in self._windows.items():
            if start <= address and address + bytes <= start + window.bytes:
                return window
        raise MappingError(f"{bytes} bytes at {address:#x} are not in a reserved window")

    def _units(self, window: _Window, address: int, bytes: int) -> Iterable[tuple[int, int]]:
        for at, (size, _) in sorted(window.units.items()):
            if at < address + bytes and address < at + size:
                if at < address or at + size > address + bytes:
                    raise MappingError(f"{bytes} bytes at {address:#x} cut a page: it goes whole")
                yield at, size

    def _unmap(self, window: _Window, address: int, bytes: int) -> None:
        for at, size in list(self._units(window, address, bytes)):
            self._driver.unmap(at, size)
            _, page = window.units.pop(at)
            page.maps -= 1
            self._release_unused(page)
        if not window.units:
            window.nature = None

    def _release_unused(self, page: _Page) -> None:
        if not page.given_up or page.maps:
            return
        if page.exported is not None and self._driver.shares_fds:
            os.close(page.exported)
        self._driver.release(page.handle)


def device_number(device_id: str) -> int:
    """The driver's number of a device: the digits that its id ends in ("d3" is 3)."""
    digits = device_id[len(device_id.rstrip("0123456789")) :]
    if not digits:
        raise MappingError(
            f"device {device_id}: the id must end in the driver's number",
            next_step='name devices "d0", "d1", ...',
        )
    return int(digits)


def _words(handle: DeviceHandle, run: PageRun) -> str:
    return f"map pages {run.first}..{run.first + run.count - 1} of device {handle.device_id}"
