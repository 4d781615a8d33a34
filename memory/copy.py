"""How do the bytes of pages get from one device of a node to another?

The peer's pages are mapped read-only for as long as the copy takes and moved by memcpy, which on
one machine is five to ten times faster than any socket. The target is a mapped, writable window.
The back end lets go of the interpreter lock during the move, so a serving thread goes on.

Only within a node: pages of another machine are never mapped, they travel through the engine's
transfer group.
"""

from collections.abc import Sequence

from ..core.errors import MappingError
from .backend import DeviceHandle
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
        for done in range(0, count, PIECE_BYTES):
            size = min(PIECE_BYTES, count - done)
            target.mapper.copy(target.address + target_offset + done, peer.address + done, size)
    return count
