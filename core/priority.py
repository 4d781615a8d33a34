"""Who gives way when cores are short? The level of a thread, and that of a whole session.

Three levers, all without privileges:

- A thread that works beside a serving engine raises its own nice level (`be_gentle`). It keeps
  about a tenth of a core that others want, so that it cannot stop dead while it holds a lock that
  they need (the interpreter's, or that of the address space), as it could at idle priority.
- Where the kernel groups tasks by session (autogroup), levels of threads, idle priority too, count
  inside their own session only: a process that leads one takes a whole share of a core from every
  other session, whatever its threads ask for. So the session itself steps back (`lower`), and
  comes up again when it is needed (`restore`). That takes no right, unlike leaving idle priority.
- A thread that waits for others many times in a step asks for short slices (`be_prompt`): it then
  runs the moment it is woken, instead of when whoever got its core meanwhile has had a slice of
  some milliseconds. What it gets in all is the same.

Source: sched(7), "The autogroup feature"; sched_setattr(2), custom slices since Linux 6.12. Kernels
without them go on as before.
Standard library only.
"""

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: Weight 110 against 1024: a tenth of a core that is wanted, all of one that is not.
GENTLE_NICE = 10
#: Weight 15 against 1024, for what nobody waits for.
LAST_NICE = 19
#: The least slice that the kernel gives (its default is some milliseconds).
PROMPT_SLICE_NS = 100_000
#: How long bystanders stay up after something pressed.
PRESSING_S = 5.0
#: A thread at idle priority that gets no core in this time has its answer.
ASK_S = 1.0
#: The kernel lets users change sessions' levels ten times a second, all users together.
RESTORE_TRIES, RESTORE_PAUSE_S = 100, 0.02

_SESSION = Path("/proc/self/autogroup")
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # glibc names it only since 2.41


def be_gentle(nice: int = GENTLE_NICE) -> None:
    """Lower the calling thread for the rest of its life; threads that it starts inherit that."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def be_idle() -> None:
    """Run the calling thread, for the rest of its life, only where nobody else wants to.

    The scheduler takes a core that runs nothing else for an idle one, and wakes others there: a
    thread that is merely nice keeps a core to itself while two that wait for each other share the
    next. Not for a thread that may hold a lock which others need.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@functools.cache
def can_leave_idle() -> bool:
    """Whether threads of this process may come back from idle priority; asked once, on one."""
    found: list[bool] = []

    def ask() -> None:
        be_idle()
        try:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except OSError:
            found.append(False)
        else:
            found.append(True)

    thread = threading.Thread(target=ask, name="may it", daemon=True)
    thread.start()
    thread.join(ASK_S)
    return found == [True]


def be_prompt(slice_ns: int = PROMPT_SLICE_NS) -> bool:
    """Give the calling thread short slices; returns whether the kernel accepts the call.

    One that is older than 6.12 accepts it and goes on as before. Threads that this one starts
    afterwards inherit them.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _SchedAttr(size=ctypes.sizeof(_SchedAttr), nice=nice, runtime=slice_ns)
    return bool(ctypes.CDLL(None).syscall(number, 0, ctypes.byref(wanted), 0) == 0)


class _SchedAttr(ctypes.Structure):
    """struct sched_attr in its first version; policy 0 is the normal one."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def lift_thread(thread: int) -> None:
    """Bring a thread of this user back to where threads begin, as far as that is allowed.

    Either half takes a right that users often lack.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, 0)


def put_session(leader: int, nice: int) -> None:
    """Set the level of a session of this user from outside; 0 is its whole share.

    Nothing happens when that process leads none, or the kernel refuses.
    """
    with contextlib.suppress(OSError):
        if os.getsid(leader) == leader:
            Path(f"/proc/{leader}/autogroup").write_bytes(str(nice).encode())


class Bystanders:
    """Processes beside those who serve: they give way, but for what presses they come up.

    A change that is not gentle waits for each of them several times. They stay up for a moment
    after it: changes come in rows, and the kernel may count how often levels are changed.
    """

    def __init__(
        self,
        leaders: Callable[[], Iterable[int]],
        put: Callable[[int, int], None] = put_session,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leaders` names the leaders of their sessions."""
        self._leaders, self._put, self._now = leaders, put, now
        self._up_until: float | None = None

    def look(self, *, is_pressing: bool) -> None:
        """Call whenever something changes, and now and then."""
        if is_pressing:
            if self._up_until is None:
                self._set(0)
            self._up_until = self._now() + PRESSING_S
        elif self._up_until is not None and self._now() >= self._up_until:
            self._set(GENTLE_NICE)
            self._up_until = None

    def _set(self, nice: int) -> None:
        for leader in self._leaders():
            self._put(leader, nice)


class SessionPriority:
    """The level of the session that this process leads. Does nothing in somebody else's session."""

    def __init__(self, place: Path = _SESSION) -> None:
        self._place = place
        self._lock = threading.Lock()
        self.is_lowered = False

    def lower(self, nice: int = LAST_NICE) -> bool:
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
