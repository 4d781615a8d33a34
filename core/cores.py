"""How do threads that wait for each other keep off each other's core while others work beside them?

Ranks that step together are as slow as the slowest. A core that runs somebody of a low level counts
as taken when the kernel looks for a place for a thread that wakes up, so two ranks may come to
share one core while a helper has the next one to itself, for tens of milliseconds. A thread that
holds a `CoreClaim` stays on one core that no other claimant has, or as few as possible; whoever
else is there runs while it sleeps.

A claim is a name in the kernel's own table (an abstract Unix socket): one holder on the machine,
given up when its process ends, however it ends. It is advice: where no name can be had, or the
thread may run on one core only, nothing is done.

Standard library only.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Sequence

#: Claimants of one core, at most: with more ranks than that a machine is full anyway.
PER_CORE_MAX = 8


class CoreClaim:
    """One thread's claim of a core. Not for use by two threads at once."""

    def __init__(self, thread: int, prefix: str = "moectl-core") -> None:
        """`thread` is its native id; `prefix` names the table (tests have one of their own)."""
        self.core: int | None = None
        self._thread, self._prefix = thread, prefix
        self._before: set[int] = set()
        self._name: socket.socket | None = None

    def take(self) -> bool:
        """Claim a core and stay there; returns whether there is a claim. Harmless when held."""
        if self._name is not None:
            return True
        try:
            allowed = os.sched_getaffinity(self._thread)
            last = _last_core(self._thread)
        except (OSError, ValueError):
            return False
        if len(allowed) < 2:
            return False
        order = sorted(allowed, key=lambda core: (core != last, core))
        self._name = self._claimed(order)
        if self._name is None or self.core is None:
            return False
        try:
            os.sched_setaffinity(self._thread, {self.core})
        except OSError:
            self.give_back()
            return False
        self._before = allowed
        return True

    def give_back(self) -> None:
        """Run wherever the thread could before; idempotent."""
        if self._before:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(self._thread, self._before)
        self._before = set()
        if self._name is not None:
            self._name.close()
        self._name = self.core = None

    def _claimed(self, order: Sequence[int]) -> socket.socket | None:
        """The first core of `order` that has the fewest claimants."""
        for level in range(PER_CORE_MAX):
            for core in order:
                name = _bound(f"\0{self._prefix}-{core}-{level}")
                if name is not None:
                    self.core = core
                    return name
        return None


def _bound(name: str) -> socket.socket | None:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(name)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return made


def _last_core(thread: int) -> int:
    """Where a thread of this process ran last: field 39 of its line in proc(5)."""
    with open(f"/proc/self/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[36])
