"""How do the bytes of pages get from one device of a node to another?

The peer's pages are mapped read-only for as long as the copy takes and moved by memcpy, which on
one machine is five to ten times faster than any socket. The target is a mapped, writable window.
Pages that have no memory yet are written through the device's file instead: a fault less for each 4
KiB, and twice as fast (facts/prototypes.md section 6). Which ones these are is the kernel's word.
The back end lets go of the interpreter lock during the move, so a serving thread goes on.

Only within a node: pages of another machine are never mapped, they travel through the engine's
transfer group.
"""

from collections.abc import Iterator, Sequence

from ..core.errors import MappingError
from .backend import DeviceHandle, PageRun, coalesce
from .window import Window

PIECE_BYTES = 16 * 1024 * 1024  # a step that other threads of the process can wait for


def copy_pages(
    source: DeviceHandle,
    source_pages: Sequence[int],
    target: Window,
    target_offset: int,
    byte_count: int | None = None,
) -> int:
    """Copy whole pages, or their first `byte_count` bytes, to `target_offset`; returns bytes moved.

    Devices with different page sizes are fine: bytes are counted, not pages. Raises MappingError
    when the target is not writable or not mapped there, or the counts do not fit.
    """
    total = len(source_pages) * source.page_bytes
    count = total if byte_count is None else byte_count
    if not 0 <= count <= total:
        raise MappingError(f"{count} bytes of {total} were asked for")
    if not target.writable or not target.is_mapped(target_offset, count):
        raise MappingError(
            f"offset {target_offset}, {count} bytes: not mapped writable on device "
            f"{target.handle.device_id}"
        )
    if not count:
        return 0
    with Window(source, total, writable=False, mapper=target.mapper) as peer:
        peer.map(0, source_pages)
        for begin, size, place in _stretches(target, target_offset, count):
            for done in range(0, size, PIECE_BYTES):
                piece, at = min(PIECE_BYTES, size - done), begin + done
                source_at = peer.address + at - target_offset
                if place is not None:
                    target.mapper.write(target.handle, place + done, source_at, piece)
                else:
                    target.mapper.copy(target.address + at, source_at, piece)
    return count


def _stretches(target: Window, offset: int, count: int) -> Iterator[tuple[int, int, int | None]]:
    """(offset in the window, bytes, byte of the device where its pages have no memory yet)."""
    page, end = target.page_bytes, offset + count
    start = offset // page * page
    for run in coalesce(target.pages_at(offset, count)):
        for part, is_fresh in _split(run, target.mapper.untouched(target.handle, run)):
            stop = start + part.count * page
            low, high = max(start, offset), min(stop, end)
            yield low, high - low, part.first * page + low - start if is_fresh else None
            start = stop


def _split(run: PageRun, fresh: Sequence[PageRun]) -> Iterator[tuple[PageRun, bool]]:
    """A run as parts with memory and parts without."""
    at, end = run.first, run.first + run.count
    for part in fresh:
        if part.first > at:
            yield PageRun(at, part.first - at), False
        yield part, True
        at = part.first + part.count
    if at < end:
        yield PageRun(at, end - at), False
