"""What does the HMM write down so that its successor knows who had which page?

One file beside the socket, one line of JSON per change, written before the change is made and
before it is answered. It outlives the HMM's process, not the machine: neither do the pages, so
nothing is flushed to the disk. A torn last line is a change that nobody was told of: it is dropped.

A change that cannot be written down is refused: the file is cut back to its last whole line, the
caller gets a MemoryPoolError, so a full disk stops new commitments and nothing else. The file is
rewritten from a snapshot when it has grown to a multiple of it.

A line is a list of effects, applied together or not at all:

    ["device", id, {...}]                 what was created, with the file's identity
    ["hold" | "free", device, owner, runs]
    ["rename", device, old, new, runs]
    ["put", name, layout] ["drop", name]
    ["claims", device, {party: [guarantee, weight]}]
    ["reserve", number, {...}] ["settle", number, committed] ["committed", number]

Standard library only; meaning is `recovery.py`'s.
"""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import MemoryPoolError

Effect = list[Any]

COMPACT_BYTES_MIN = 4 << 20  # below this a rewrite is not worth its time
COMPACT_FACTOR = 4  # of the last snapshot


class Journal:
    """Append effects; `snapshot` gives the whole state as effects, for rewriting."""

    def __init__(self, path: Path, snapshot: Callable[[], list[Effect]]) -> None:
        self.path = path
        self._snapshot = snapshot
        self._fd = -1
        self._bytes = 0
        self._compact_at = COMPACT_BYTES_MIN

    def start(self) -> None:
        """Begin a new file with a snapshot of what is. Raises MemoryPoolError."""
        self._rewrite()

    def append(self, effects: Sequence[Effect]) -> None:
        """Write effects down as one line; raises MemoryPoolError and changes nothing on failure."""
        if self._fd < 0 or not effects:
            return
        if self._bytes > self._compact_at:
            with contextlib.suppress(MemoryPoolError):  # the long file is as good as a short one
                self._rewrite()
        line = _line(effects)
        try:
            _write_all(self._fd, line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._bytes)
            raise MemoryPoolError(
                f"{self.path}: {len(line)} bytes cannot be written down: {error.strerror}",
                next_step="free space on that disk; what is in memory is not affected",
            ) from error
        self._bytes += len(line)

    def close(self, *, forget: bool = False) -> None:
        """Stop writing; `forget` removes the file, for an end without anything to recover."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if forget:
            self.path.unlink(missing_ok=True)

    def _rewrite(self) -> None:
        data = b"".join(_line([effect]) for effect in self._snapshot())
        partial = self.path.with_name(self.path.name + ".partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(partial, flags, 0o600)
            try:
                _write_all(fd, data)
                os.replace(partial, self.path)
            except OSError:
                os.close(fd)
                partial.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._compact_at *= 2  # try again later, not at every line
            raise MemoryPoolError(f"{self.path}: cannot be written: {error.strerror}") from error
        self.close()
        self._fd, self._bytes = fd, len(data)
        self._compact_at = max(COMPACT_BYTES_MIN, COMPACT_FACTOR * len(data))


class NoJournal:
    """Writes nothing: for tables that nobody will have to rebuild."""

    def append(self, effects: Sequence[Effect]) -> None:
        """Do nothing."""

    def close(self, *, forget: bool = False) -> None:
        """Do nothing."""


def read_journal(path: Path) -> list[Effect]:
    """Every effect of a journal in order; none when there is no file. A torn end is dropped."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MemoryPoolError(f"{path}: cannot be read: {error.strerror}") from error
    effects: list[Effect] = []
    for line in data.split(b"\n")[:-1]:  # what follows the last newline was never answered
        try:
            entry = json.loads(line)
        except ValueError:
            break  # a hole in the middle: nothing behind it can be trusted
        if not isinstance(entry, list) or not all(isinstance(effect, list) for effect in entry):
            break
        effects += entry
    return effects


def _line(effects: Sequence[Effect]) -> bytes:
    return json.dumps(list(effects), separators=(",", ":")).encode() + b"\n"


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
