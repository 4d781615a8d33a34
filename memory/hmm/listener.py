"""How does a process of a node listen so that only its own user reaches it, and only one at a time?

A Unix socket in a directory of mode 0700; a lock file beside it proves whether an old socket has an
owner; the kernel says who connects. Used by every server of a node that speaks `wire`.
"""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import MemoryPoolError
from ...core.paths import short_socket_path

BACKLOG = 256  # connections that wait to be accepted: all workers of a large node at once


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process id and user id of the process at the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid), int(uid)


def peer_uid(sock: socket.socket) -> int:
    """The user id of the process at the other end."""
    return peer_of(sock)[1]


@dataclass(slots=True)
class Place:
    """A path that this process serves, and the lock that proves it."""

    path: Path
    listener: socket.socket
    lock: int

    def close(self, *, leave: bool = False) -> None:
        """Stop listening; `leave` lets the path and the lock to whoever has them too."""
        self.listener.close()
        if not leave:
            self.path.unlink(missing_ok=True)
        os.close(self.lock)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, in a directory that is private; removed at the end.

    Raises MemoryPoolError when another process serves the path, or others may enter the directory.
    """
    place = take_place(path)
    try:
        yield place.listener
    finally:
        place.close()


def take_place(path: Path) -> Place:
    """Listen at `path`; raises like `listening`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.parent.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise MemoryPoolError(
            f"{path.parent} is open to other users", next_step=f"chmod 700 {path.parent}"
        )
    lock = os.open(
        path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        return Place(path, _listen(path, lock), lock)
    except BaseException:
        os.close(lock)
        raise


def _listen(path: Path, lock: int) -> socket.socket:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise MemoryPoolError(
            f"another process serves {path} already", next_step="use that one, or end it"
        ) from error
    path.unlink(missing_ok=True)  # left by one that was killed: the lock proves that it is gone
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        with short_socket_path(path) as name:
            listener.bind(name)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(previous)
    return listener
