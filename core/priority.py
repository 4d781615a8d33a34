"""Who gives way when cores are short? The level of a thread, and that of a whole session.

Two levers, both without privileges:

- A thread that works beside a serving engine raises its own nice level (`be_gentle`). It keeps
  about a tenth of a core that others want, so that it cannot stop dead while it holds a lock that
  they need (the interpreter's, or that of the address space), as it could at idle priority.
- Where the kernel groups tasks by session (autogroup), levels of threads, idle priority too, count
  inside their own session only: a process that leads one takes a whole share of a core from every
  other session, whatever its threads ask for. So the session itself steps back (`lower`), and
  comes up again when it is needed (`restore`). That takes no right, unlike leaving idle priority.

Source: sched(7), "The autogroup feature". Kernels without it keep what the levels of threads give.
Standard library only.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

#: Weight 110 against 1024: a tenth of a core that is wanted, all of one that is not.
GENTLE_NICE = 10
#: Weight 15 against 1024, for what nobody waits for.
LAST_NICE = 19
#: The kernel lets users change sessions' levels ten times a second, all users together.
RESTORE_TRIES, RESTORE_PAUSE_S = 100, 0.02

_SESSION = Path("/proc/self/autogroup")


def be_gentle(nice: int = GENTLE_NICE) -> None:
    """Lower the calling thread for the rest of its life; threads that it starts inherit that."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


class SessionPriority:
    """The level of the session that this process leads. Does nothing in somebody else's session."""

    def __init__(self, place: Path = _SESSION) -> None:
        self._place = place
        self._lock = threading.Lock()
        self.is_lowered = False

    def lower(self, nice: int = GENTLE_NICE) -> bool:
        """Step back; returns whether this process now has less than its share."""
        with self._lock:
            if os.getsid(0) == os.getpid() and self._write(nice):
                self.is_lowered = True
            return self.is_lowered

    def restore(self) -> bool:
        """Come up again; returns whether this process has its whole share."""
        with self._lock:
            for _ in range(RESTORE_TRIES if self.is_lowered else 0):
                if self._write(0):
                    self.is_lowered = False
                    break
                time.sleep(RESTORE_PAUSE_S)
            return not self.is_lowered

    def _write(self, nice: int) -> bool:
        try:
            self._place.write_bytes(str(nice).encode())
        except OSError:  # no such feature, or too many changes at once
            return False
        return True
