"""How are megabytes copied beside threads that serve, without emptying their caches?

By a few lines of C (`_stream.c`) whose stores go past the caches; without a compiler by memmove, a
third slower (measured for 6 MiB pieces: 6.9 against 9.4 GB/s). Small copies are better off in the
caches. Both let go of the interpreter lock.

A thread that is nice copies at idle priority, where it is allowed to come back from there
(CAP_SYS_NICE, or RLIMIT_NICE): the scheduler then takes its core for a free one, and does not put
two threads that serve on the other. Nobody waits for a lock of it meanwhile.
Standard library only.
"""

import ctypes
import os
from types import ModuleType

from ..core.priority import can_leave_idle

extension: ModuleType | None
try:
    from . import _stream as extension  # type: ignore[attr-defined, no-redef, unused-ignore]
except ImportError:
    extension = None

INTERFACE = 1  # as in _stream.c: an extension left over from another version is not used
if extension is not None and getattr(extension, "INTERFACE", 0) != INTERFACE:
    extension = None

#: Below this a copy fits the caches of one core, and whoever reads it next finds it there.
STREAM_BYTES_MIN = 1 << 20


def backend_name() -> str:
    """ "native (what it uses)" when the compiled path is there, else "reference"."""
    return "reference" if extension is None else f"native ({extension.KIND})"


def copy_bytes(target: int, source: int, bytes: int) -> None:
    """Copy between two mapped ranges of addresses that do not overlap."""
    if extension is None or bytes < STREAM_BYTES_MIN:
        ctypes.memmove(target, source, bytes)
    else:
        extension.copy(target, source, bytes, _is_gentle() and can_leave_idle())


def _is_gentle() -> bool:
    """Whether this thread has been made nice, and nothing more."""
    is_nice = os.getpriority(os.PRIO_PROCESS, 0) > 0
    return is_nice and os.sched_getscheduler(0) == os.SCHED_OTHER
