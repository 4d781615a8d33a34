"""How do bytes come from a file: through the page cache, or past it straight from the disk?

`WeightFile.read_into` fills memory with a range of a file. With `direct`, and where the file system
allows it (O_DIRECT), the disk writes into the target's own memory wherever offset and address agree
within a block; what does not agree passes one aligned bounce buffer, which the reader owns. Direct
reading is for weights that are read once: it leaves the page cache to others.

Every error is a CheckpointError with the file's name; the caller knows the tensor. Standard library
only.
"""

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

from ..core.checkpoint import DAMAGED
from ..core.errors import CheckpointError

BLOCK_BYTES = 4096  # a multiple of the block of every disk in use
BOUNCE_BYTES = 4 << 20  # stays in the last-level cache between reading and copying
DIRECT_BYTES_MIN = 256 * 1024  # below this the page cache is the better way


class WeightFile:
    """One file open for reading. Not shared between threads."""

    def __init__(self, path: Path, *, direct: bool = False) -> None:
        self.path = path
        self.direct_bytes = 0  # read past the page cache
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        self._bytes = os.fstat(self._fd).st_size
        self._direct_fd = _open_direct(path) if direct else -1
        self._bounce: mmap.mmap | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the file system lets us read past the page cache."""
        return self._direct_fd >= 0

    def read_into(self, begin: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `begin` on.

        Raises CheckpointError when the file ends before.
        """
        if begin + len(target) > self._bytes:
            raise CheckpointError(f"{self.path}: truncated", next_step=DAMAGED)
        if self._direct_fd >= 0 and len(target) >= DIRECT_BYTES_MIN:
            self._read_direct(begin, target)
        else:
            self._read_cached(begin, target)

    def close(self) -> None:
        """Close the file."""
        for fd in (self._fd, self._direct_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1
        if self._bounce is not None:
            self._bounce.close()
            self._bounce = None

    def _read_cached(self, begin: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._fd, [target[done:]], begin + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{self.path}: truncated", next_step=DAMAGED)
            done += count

    def _read_direct(self, begin: int, target: memoryview) -> None:
        """Whole blocks past the cache, the two ragged ends through it."""
        head = -begin % BLOCK_BYTES
        middle = (len(target) - head) // BLOCK_BYTES * BLOCK_BYTES
        self._read_cached(begin, target[:head])
        self._read_cached(begin + head + middle, target[head + middle :])
        blocks = target[head : head + middle]
        address = ctypes.addressof(ctypes.c_char.from_buffer(blocks))
        if address % BLOCK_BYTES == 0:
            self._read_blocks(begin + head, blocks)
            return
        if self._bounce is None:
            self._bounce = mmap.mmap(-1, BOUNCE_BYTES)
        with memoryview(self._bounce) as bounce:
            for done in range(0, middle, BOUNCE_BYTES):
                size = min(BOUNCE_BYTES, middle - done)
                self._read_blocks(begin + head + done, bounce[:size])
                blocks[done : done + size] = bounce[:size]

    def _read_blocks(self, begin: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._direct_fd, [target[done:]], begin + done)
            except OSError:  # a file system that says yes and then no
                count = -1
            if count <= 0 or count % BLOCK_BYTES:
                self._read_cached(begin + done, target[done:])
                return
            done += count
            self.direct_bytes += count


def _open_direct(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    return -1
