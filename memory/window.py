"""Which page stands at which address of this process?

A `Window` is a range of reserved addresses into which pages of one device are mapped and from which
they are unmapped again, while the addresses stay reserved: nothing else can land there, so a stale
pointer faults instead of reading someone else's data. A layout change builds a second ("shadow")
window off the critical path and the engine flips from one to the other; `remap` changes pages in
place.

The window is the only place where MAP_FIXED is reached, and it checks first: alignment, bounds,
foreign pages, double maps and unmaps of nothing are typed errors. It must never own pages: the pool
does.

Lifetime: `close` makes the whole range inaccessible at once. The addresses are given up only when
the last tensor that views them is gone (`AddressRange` is what tensors hold on to), so even a
forgotten tensor cannot read memory that was mapped there later by somebody else.
"""

import threading
import weakref
from collections.abc import Sequence
from types import TracebackType

from ..core.errors import MappingError
from .backend import DeviceHandle, PageMapper, coalesce
from .host import HostBackend

HOST_KIND = "cpu"


class AddressRange:
    """Reserved addresses; given up when nothing refers to this object any more."""

    def __init__(self, mapper: PageMapper, bytes: int) -> None:
        self.bytes = bytes
        self.address = mapper.reserve(bytes)
        finalizer = weakref.finalize(self, mapper.release, self.address, bytes)
        finalizer.atexit = False  # the process's end does it anyway, tensors may still be in use


class Window:
    """Pages of one device at addresses of this process. Thread-safe: one lock per window."""

    def __init__(
        self,
        handle: DeviceHandle,
        bytes: int,
        writable: bool,
        mapper: PageMapper | None = None,
    ) -> None:
        if bytes <= 0:
            raise MappingError(f"a window of {bytes} bytes was asked for")
        self.handle = handle
        self.page_bytes = handle.page_bytes
        self.bytes = -(-bytes // self.page_bytes) * self.page_bytes
        self.writable = writable
        if mapper is None and handle.kind != HOST_KIND:
            raise MappingError(
                f"device {handle.device_id} is of kind {handle.kind}: say which back end maps it"
            )
        self.mapper: PageMapper = mapper if mapper is not None else HostBackend()
        self._range: AddressRange | None = AddressRange(self.mapper, self.bytes)
        self.address = self._range.address
        self._page_at: dict[int, int] = {}  # place in the window, in pages -> page of the device
        self._lock = threading.Lock()

    @property
    def range(self) -> AddressRange:
        """What a view of this window must hold on to; MappingError once the window is closed."""
        if self._range is None:
            raise MappingError(f"the window on device {self.handle.device_id} is closed")
        return self._range

    def map(self, offset: int, pages: Sequence[int]) -> None:
        """Map `pages` one after another from `offset` on, in one call per consecutive run.

        Raises MappingError on wrong alignment, places outside, foreign pages and double maps; then
        nothing was mapped.
        """
        with self._lock:
            first = self._checked_place(offset, len(pages) * self.page_bytes)
            self._check_pages(pages)
            for place in range(first, first + len(pages)):
                if place in self._page_at:
                    raise MappingError(
                        f"{self._name(place)} already maps page {self._page_at[place]}",
                        next_step="unmap it first, or use remap",
                    )
            self._map_runs(first, pages)

    def remap(self, offset: int, pages: Sequence[int]) -> None:
        """Like `map`, but replaces whatever is mapped there."""
        with self._lock:
            first = self._checked_place(offset, len(pages) * self.page_bytes)
            self._check_pages(pages)
            self._map_runs(first, pages)

    def unmap(self, offset: int, bytes: int) -> None:
        """Make a mapped range inaccessible; addresses stay reserved, pages keep their bytes."""
        with self._lock:
            first = self._checked_place(offset, bytes)
            places = range(first, first + bytes // self.page_bytes)
            for place in places:
                if place not in self._page_at:
                    raise MappingError(f"{self._name(place)} maps no page, nothing to unmap")
            self.mapper.unmap(self.address + offset, bytes)
            for place in places:
                del self._page_at[place]

    def prefault(self, offset: int, bytes: int) -> None:
        """Fill this process's page tables for a mapped range: its first use costs no faults."""
        with self._lock:
            first = self._checked_place(offset, bytes)
            for place in range(first, first + bytes // self.page_bytes):
                if place not in self._page_at:
                    raise MappingError(f"{self._name(place)} maps no page, nothing to prefault")
            if bytes:
                self.mapper.prefault(self.address + offset, bytes, self.writable)

    def is_mapped(self, offset: int, bytes: int) -> bool:
        """Whether every byte of `[offset, offset + bytes)` stands on a page; any alignment."""
        if offset < 0 or bytes < 0 or offset + bytes > self.bytes:
            return False
        places = range(offset // self.page_bytes, -(-(offset + bytes) // self.page_bytes))
        with self._lock:
            return all(place in self._page_at for place in places)

    def pages(self) -> dict[int, int]:
        """A copy of the table: byte offset in the window -> page of the device."""
        with self._lock:
            return {place * self.page_bytes: page for place, page in self._page_at.items()}

    def pages_at(self, offset: int, bytes: int) -> tuple[int, ...]:
        """The pages below a mapped range, in order; MappingError where there is none."""
        places = range(offset // self.page_bytes, -(-(offset + bytes) // self.page_bytes))
        with self._lock:
            try:
                return tuple(self._page_at[place] for place in places)
            except KeyError as error:
                raise MappingError(f"{self._name(error.args[0])} maps no page") from None

    def close(self) -> None:
        """Make the whole window inaccessible; calling it again does nothing."""
        with self._lock:
            if self._range is None:
                return
            if self._page_at:
                self.mapper.unmap(self.address, self.bytes)
                self._page_at.clear()
            self._range = None

    def __enter__(self) -> "Window":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _map_runs(self, first: int, pages: Sequence[int]) -> None:
        place = first
        for run in coalesce(tuple(pages)):
            address = self.address + place * self.page_bytes
            self.mapper.map(address, self.handle, run, self.writable)
            self._page_at.update((place + index, run.first + index) for index in range(run.count))
            place += run.count

    def _checked_place(self, offset: int, bytes: int) -> int:
        _ = self.range  # refuses when closed
        if offset % self.page_bytes or bytes % self.page_bytes or bytes < 0:
            raise MappingError(
                f"offset {offset}, {bytes} bytes: not multiples of the page ({self.page_bytes})"
            )
        if offset < 0 or offset + bytes > self.bytes:
            raise MappingError(f"{offset}..{offset + bytes} is outside a window of {self.bytes}")
        return offset // self.page_bytes

    def _check_pages(self, pages: Sequence[int]) -> None:
        for page in pages:
            if not 0 <= page < self.handle.page_count:
                raise MappingError(
                    f"page {page} is not one of the {self.handle.page_count} pages of device "
                    f"{self.handle.device_id}"
                )

    def _name(self, place: int) -> str:
        return f"window of device {self.handle.device_id}, offset {place * self.page_bytes}"
