"""What must a kind of device be able to do so that pages, windows and pools can live on it?

Two small protocols, because two processes share the work. `PageOwner` is the HMM's half: it creates
the physical pages of a device and holds them while workers come and go. `PageMapper` is the
worker's half: it reserves virtual addresses and maps pages that the owner shared. A back end offers
both.

The rules are those of the strictest device (Ascend ACL): a page is mapped whole, at its own offset
0, never twice into the same place, and access is stated when mapping. Pages are named by their
index on the device, so that nothing above this file knows what a handle is made of.

    reserve(bytes) -> address      addresses only; touching them is a segmentation fault
    map(address, handle, run)      a run of consecutive pages becomes readable (and writable)
    unmap(address, bytes)          back to reserved addresses; the pages keep their content
    release(address, bytes)        the addresses themselves are given up

This file must never import torch, nor know a particular device.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PageRun:
    """Consecutive pages `[first, first + count)` of one device: one mapping unit where allowed."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class DeviceHandle:
    """The right to map the pages of one device.

    `fd` is what the owner shared; it stays valid until whoever received it closes it. It is -1 for
    a kind of device that shares page by page (`Shares`). `page_kind` says what the pages are made
    of: "4KiB", "thp-2MiB" or "hugetlb-2MiB" on the host back end.
    """

    device_id: str
    fd: int
    page_bytes: int
    page_count: int
    page_kind: str
    kind: str = "cpu"  # which back end maps it

    @property
    def bytes(self) -> int:
        """The HBM size that is enforced, in bytes."""
        return self.page_bytes * self.page_count


@dataclass(frozen=True, slots=True)
class Shares:
    """What lets another process map a run of pages, one entry a page: descriptors or numbers.

    Both are empty where the device's own descriptor is enough. Descriptors belong to the receiver.
    """

    fds: tuple[int, ...] = ()
    values: tuple[int, ...] = ()


class PageOwner(Protocol):
    """The HMM's half: creates and keeps the physical pages of a device."""

    def create(self, device_id: str, hbm_bytes: int, page_bytes: int) -> DeviceHandle:
        """Create `hbm_bytes // page_bytes` pages. Raises MappingError on impossible sizes."""
        ...

    def trim(self, handle: DeviceHandle, run: PageRun) -> int:
        """Give the memory behind free pages back to the machine; returns bytes released.

        Only for pages that nobody maps: a reader would see zeros without being told.
        """
        ...

    def share(self, handle: DeviceHandle, run: PageRun, process: int) -> Shares:
        """What `process` needs to map these pages; the same pages may be shared again."""
        ...

    def destroy(self, handle: DeviceHandle) -> None:
        """Close the device's pages; memory lives on while any process still maps it."""
        ...


class PageMapper(Protocol):
    """The worker's half: turns pages into addresses."""

    def process(self) -> int:
        """How this process is named to the owner when it asks for pages."""
        ...

    def adopt(self, handle: DeviceHandle, run: PageRun, shares: Shares) -> None:
        """Take what the owner shared, before these pages are mapped here for the first time."""
        ...

    def reserve(self, bytes: int) -> int:
        """Reserve addresses, aligned to the largest page the back end knows."""
        ...

    def map(self, address: int, handle: DeviceHandle, run: PageRun, writable: bool) -> None:
        """Map a run at reserved addresses, replacing what is mapped there."""
        ...

    def unmap(self, address: int, bytes: int) -> None:
        """Turn addresses back into reserved ones."""
        ...

    def prefault(self, address: int, bytes: int, writable: bool) -> None:
        """Make the first access to mapped addresses cheap, off the critical path."""
        ...

    def copy(self, target: int, source: int, bytes: int) -> None:
        """Copy between mapped addresses, and return when it is done."""
        ...

    def untouched(self, handle: DeviceHandle, run: PageRun) -> list[PageRun]:
        """Pages of a run without memory behind them: filling those is better done by `write`."""
        ...

    def write(self, handle: DeviceHandle, offset: int, source: int, bytes: int) -> None:
        """Copy from mapped addresses to a byte offset of the device, mapped here or not."""
        ...

    def release(self, address: int, bytes: int) -> None:
        """Give reserved addresses up."""
        ...


class Backend(PageOwner, PageMapper, Protocol):
    """Both halves; what the contract suite tests."""


def coalesce(pages: "list[int] | tuple[int, ...]") -> list[PageRun]:
    """Runs of consecutive pages, in the order given: the fewest mappings that cover `pages`."""
    runs: list[PageRun] = []
    for page in pages:
        if runs and runs[-1].first + runs[-1].count == page:
            runs[-1] = PageRun(runs[-1].first, runs[-1].count + 1)
        else:
            runs.append(PageRun(page, 1))
    return runs


def expand(runs: "list[PageRun] | tuple[PageRun, ...]") -> tuple[int, ...]:
    """The inverse of `coalesce`."""
    return tuple(page for run in runs for page in range(run.first, run.first + run.count))
