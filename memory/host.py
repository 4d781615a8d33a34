"""How does ordinary memory behave like a device: with pages, windows and a size that holds?

The pages of a device are one memfd, as long as its HBM and sealed against resizing, so that no
mapper can ever meet the end of the file (SIGBUS). Page i is the range `[i * page_bytes, ...)`. It
is never sealed against writing: that cannot be undone, and pages of weights become pages of KV
later. Read-only weights are a matter of how a worker maps them (PROT_READ).

Python's own `mmap` can neither choose an address nor keep one reserved, so libc is called through
ctypes, which also releases the interpreter lock during the call. MAP_FIXED silently destroys
whatever was at an address: it is used inside ranges that `reserve` returned, and nowhere else.

Page kinds are tried from the cheapest to remap to the plainest: hugetlb, shared huge pages, 4 KiB.
Of the last, free ones are turned into 2 MiB pages ahead of need (`populate_huge`).
"""

import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

from ..core.errors import MappingError
from .backend import DeviceHandle, PageRun, Shares
from .stream import copy_bytes

OS_PAGE_BYTES = mmap.PAGESIZE
HUGE_PAGE_BYTES = 2 * 1024 * 1024
KIND_SMALL = "4KiB"
KIND_SHARED_HUGE = "thp-2MiB"
KIND_HUGETLB = "hugetlb-2MiB"

# Values of the Linux ABI that the standard library does not name (mman.h, falloc.h, memfd.h).
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25  # since Linux 6.1
_FALLOC_PUNCH_HOLE = 0x02 | 0x01  # with KEEP_SIZE, which the call requires
_MFD_HUGE_2MB = 21 << 26
_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034
_SEALS_AGAINST_RESIZING = 0x1 | 0x2 | 0x4  # SEAL | SHRINK | GROW
_PROT_NONE = 0
_MAP_FAILED = ctypes.c_void_p(-1).value
_SHARED_HUGE_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


class HostBackend:
    """`Backend` over memfd and mmap; stateless apart from the loaded libc."""

    def __init__(self) -> None:
        self._libc = _load_libc()

    # The owner's half.

    def create(self, device_id: str, hbm_bytes: int, page_bytes: int) -> DeviceHandle:
        """A sealed memfd of `hbm_bytes // page_bytes` pages, touched by nobody yet."""
        if page_bytes <= 0 or page_bytes % OS_PAGE_BYTES:
            raise MappingError(
                f"device {device_id}: pageSize {page_bytes} is not a multiple of {OS_PAGE_BYTES}",
                next_step="choose a pageSize that the machine can map, such as 16KiB or 2MiB",
            )
        page_count = hbm_bytes // page_bytes
        if page_count <= 0:
            raise MappingError(
                f"device {device_id}: hbm {hbm_bytes} holds no page of {page_bytes} bytes",
                next_step="raise hbm or lower pageSize",
            )
        fd, kind = self._create_memfd(device_id, page_bytes, page_count * page_bytes)
        return DeviceHandle(device_id, fd, page_bytes, page_count, kind)

    def trim(self, handle: DeviceHandle, run: PageRun) -> int:
        """Punch a hole where free pages are; returns the bytes the file no longer holds."""
        before = held_bytes(handle.fd)
        offset, length = run.first * handle.page_bytes, run.count * handle.page_bytes
        if self._libc.fallocate(handle.fd, _FALLOC_PUNCH_HOLE, offset, length) != 0:
            raise _errno_error(f"trim {run.count} pages of device {handle.device_id}")
        return max(0, before - held_bytes(handle.fd))

    def untouched(self, handle: DeviceHandle, run: PageRun) -> list[PageRun]:
        """Pages of a run that have no memory yet, wholly or in part: their first write is dear.

        Asked of the kernel (SEEK_DATA, SEEK_HOLE), so that it is true whoever touched them. A file
        of hugetlb pages does not tell: there every page counts as touched.
        """
        page, end = handle.page_bytes, (run.first + run.count) * handle.page_bytes
        found: list[PageRun] = []
        at = run.first * page
        while at < end:
            hole = min(_seek(handle.fd, at, os.SEEK_HOLE), end)
            if hole >= end:
                break
            data = min(_seek(handle.fd, hole, os.SEEK_DATA), end)
            first, at = hole // page, -(-data // page) * page
            _append_run(found, PageRun(first, at // page - first))
        return found

    def write(self, handle: DeviceHandle, offset: int, source: int, bytes: int) -> None:
        """Write mapped bytes to a place of the device by pwrite: the cheap way to fresh pages.

        No page of it is mapped and zeroed first. Raises MappingError when the machine is full.
        """
        data = memoryview((ctypes.c_char * bytes).from_address(source)).cast("B")
        while data:
            try:
                count = os.pwrite(handle.fd, data, offset)
            except OSError as error:
                raise MappingError(
                    f"cannot write {len(data)} bytes to device {handle.device_id}: {error.strerror}"
                ) from error
            data, offset = data[count:], offset + count

    def share(self, handle: DeviceHandle, run: PageRun, process: int) -> Shares:
        """Nothing: whoever has the device's descriptor can map every page of it."""
        return Shares()

    def destroy(self, handle: DeviceHandle) -> None:
        """Close the memfd."""
        os.close(handle.fd)

    # The mapper's half.

    def process(self) -> int:
        """The process id."""
        return os.getpid()

    def adopt(self, handle: DeviceHandle, run: PageRun, shares: Shares) -> None:
        """Nothing: see `share`."""

    def reserve(self, bytes: int) -> int:
        """Reserve addresses aligned to 2 MiB, so that huge pages fit at any page offset."""
        span = bytes + HUGE_PAGE_BYTES
        start = self._mmap_inaccessible(None, span, 0)
        address = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        if address > start:
            self.release(start, address - start)
        end, used_end = start + span, address + _round_up(bytes, OS_PAGE_BYTES)
        if end > used_end:
            self.release(used_end, end - used_end)
        return address

    def map(self, address: int, handle: DeviceHandle, run: PageRun, writable: bool) -> None:
        """One MAP_SHARED|MAP_FIXED mapping for the whole run."""
        length = run.count * handle.page_bytes
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        result = self._libc.mmap(
            address,
            length,
            protection,
            mmap.MAP_SHARED | _MAP_FIXED,
            handle.fd,
            run.first * handle.page_bytes,
        )
        if result == _MAP_FAILED:
            raise _errno_error(
                f"map pages {run.first}..{run.first + run.count - 1} of device {handle.device_id}"
            )
        if handle.page_kind == KIND_SHARED_HUGE:
            self._libc.madvise(address, length, _MADV_HUGEPAGE)  # advice: may be declined

    def unmap(self, address: int, bytes: int) -> None:
        """Replace mappings by inaccessible addresses in one call: no moment when they are free."""
        self._mmap_inaccessible(address, bytes, _MAP_FIXED)

    def prefault(self, address: int, bytes: int, writable: bool) -> None:
        """Fill the page tables now (MADV_POPULATE), or by reading where the kernel is older."""
        advice = _MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ
        if self._libc.madvise(address, bytes, advice) == 0:
            return
        error = _errno_error(f"prefault {bytes} bytes")
        if self._libc.madvise(address, 0, advice) == 0:  # the kernel knows the advice: it is us
            raise error
        for place in range(address, address + bytes, OS_PAGE_BYTES):
            ctypes.c_char.from_address(place).value  # noqa: B018  the read is the point

    def populate(self, address: int, bytes: int) -> None:
        """Give mapped, writable pages their memory without changing a byte, and without a signal.

        Raises MappingError when the machine is full, or its kernel older than 5.14.
        """
        if self._libc.madvise(address, bytes, _MADV_POPULATE_WRITE) != 0:
            raise _errno_error(f"touch {bytes} bytes ahead")

    def populate_huge(self, address: int, bytes: int) -> int:
        """Like `populate`, in 2 MiB pages of the OS where it can; returns the bytes that are huge.

        Place, length and place in the device are multiples of 2 MiB. MADV_COLLAPSE heeds no switch
        of the system, and who maps the pages later fills one entry for 2 MiB instead of 512. It
        wants something to collapse, so one small page comes first. Its refusal is no error: an
        older kernel, a page in use by it at this moment, or no 2 MiB in one piece.
        """
        huge = 0
        for place in range(address, address + bytes, HUGE_PAGE_BYTES):
            self.populate(place, OS_PAGE_BYTES)
            if self._libc.madvise(place, HUGE_PAGE_BYTES, _MADV_COLLAPSE) == 0:
                huge += HUGE_PAGE_BYTES
            else:
                self.populate(place, HUGE_PAGE_BYTES)
        return huge

    def copy(self, target: int, source: int, bytes: int) -> None:
        """memcpy, without the interpreter lock."""
        copy_bytes(target, source, bytes)

    def release(self, address: int, bytes: int) -> None:
        """munmap."""
        if self._libc.munmap(address, bytes) != 0:
            raise _errno_error(f"release {bytes} bytes of addresses")

    # Parts.

    def _create_memfd(self, device_id: str, page_bytes: int, total: int) -> tuple[int, str]:
        if page_bytes % HUGE_PAGE_BYTES == 0:
            fd = _try_hugetlb(device_id, total)
            if fd is not None:
                return fd, KIND_HUGETLB
        fd = sealed_memfd(f"moectl-{device_id}", total)
        huge = page_bytes % HUGE_PAGE_BYTES == 0 and _shared_huge_pages_allowed()
        return fd, KIND_SHARED_HUGE if huge else KIND_SMALL

    def _mmap_inaccessible(self, address: int | None, bytes: int, extra: int) -> int:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | extra
        result = self._libc.mmap(address, bytes, _PROT_NONE, flags, -1, 0)
        if result == _MAP_FAILED or result is None:
            raise _errno_error(f"reserve {bytes} bytes of addresses")
        return int(result)


def is_sealed(fd: int) -> bool:
    """Whether a descriptor is a memfd that nobody can resize: mapping it can never be a SIGBUS."""
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return False
    return seals & _SEALS_AGAINST_RESIZING == _SEALS_AGAINST_RESIZING


def can_gather(handle: DeviceHandle) -> bool:
    """Whether 2 MiB pages of the OS can be made of a device's pages, each on its own."""
    return handle.page_kind == KIND_SMALL and handle.page_bytes % HUGE_PAGE_BYTES == 0


def held_bytes(fd: int) -> int:
    """Physical bytes behind a memfd right now: the honest measure of memory, unlike RSS."""
    return os.fstat(fd).st_blocks * 512


def sealed_memfd(name: str, total: int) -> int:
    """A memfd of `total` bytes that nobody can resize; its memory comes when it is touched."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise MappingError(
            f"no memfd can be made: {error}", next_step="raise `ulimit -n`"
        ) from error
    try:
        os.ftruncate(fd, total)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS_AGAINST_RESIZING)
    except OSError as error:
        os.close(fd)
        raise MappingError(f"a memfd of {total} bytes cannot be made: {error}") from error
    return fd


def _seek(fd: int, offset: int, whence: int) -> int:
    """The next hole or the next data from `offset` on; past every page where there is none."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return 1 << 62
        raise MappingError(f"the kernel does not say what is touched: {error.strerror}") from error


def _append_run(runs: list[PageRun], run: PageRun) -> None:
    last = runs[-1] if runs else None
    if last is not None and last.first + last.count == run.first:
        runs[-1] = PageRun(last.first, last.count + run.count)
    else:
        runs.append(run)


def _round_up(value: int, grain: int) -> int:
    return -(-value // grain) * grain


def _try_hugetlb(device_id: str, total: int) -> int | None:
    """A memfd of 2 MiB pages, all of them set aside now; None where the machine has too few.

    Mapping the whole file once is what makes the kernel set the pages aside. Without it a worker
    would be killed by SIGBUS at its first touch, long after anyone could choose small pages
    instead.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB | _MFD_HUGE_2MB
    try:
        fd = os.memfd_create(f"moectl-{device_id}", flags)
    except OSError:
        return None
    try:
        os.ftruncate(fd, total)
        mmap.mmap(fd, total, mmap.MAP_SHARED).close()
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS_AGAINST_RESIZING)
    except OSError:
        os.close(fd)
        return None
    return fd


def _shared_huge_pages_allowed() -> bool:
    try:
        setting = _SHARED_HUGE_SWITCH.read_text()
    except OSError:
        return False
    return any(f"[{word}]" in setting for word in ("always", "within_size", "advise", "force"))


def _load_libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = address
    libc.mmap.argtypes = [address, size, number, number, number, ctypes.c_long]
    libc.munmap.argtypes = [address, size]
    libc.madvise.argtypes = [address, size, number]
    libc.fallocate.argtypes = [number, number, ctypes.c_long, ctypes.c_long]
    return libc


def _errno_error(what: str) -> MappingError:
    code = ctypes.get_errno()
    hint = (
        "lower the number of scattered pages, or raise vm.max_map_count"
        if code == errno.ENOMEM
        else ""
    )
    return MappingError(f"cannot {what}: {os.strerror(code)} (errno {code})", next_step=hint)
