"""Who may change the fleet of this home right now? One `up` or `down` at a time.

The lock is on the directory itself, so that it leaves no file behind, and it ends with its process.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from ..core.errors import ConflictError
from ..core.paths import Home

LOCK_WAIT_S = 2.0  # long enough for a command that is just ending
POLL_S = 0.05


@contextlib.contextmanager
def home_lock(home: Home) -> Iterator[None]:
    """Hold the home; raises ConflictError when another `up` or `down` works on it."""
    descriptor = _acquire(home)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(home: Home) -> int:
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(home, descriptor):
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(descriptor)
                raise ConflictError(
                    f"another `moectl up` or `moectl down` is working on {home.root}",
                    next_step="wait until it has ended, then try again",
                ) from None
        os.close(descriptor)
        time.sleep(POLL_S)


def _is_current(home: Home, descriptor: int) -> bool:
    """A `down` that we waited for has removed the directory: then ours is a new one."""
    try:
        return os.stat(home.root).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
