"""What if the process that forks workers is killed? A copy of it waits to take its place.

The fork server forks a spare that does nothing but wait at a pipe. The server alone holds the other
end: when it dies, however it dies, the spare reads the end of the pipe and serves on, with every
import and template that was there when it was forked, in milliseconds instead of the seconds that
an import of torch takes. A spare that is not needed any more reads QUIT.

Its process id stands in a file beside the socket, so that an agent knows whom to wait for or to
end. Like the fork server it has one thread and shares nearly all of its memory.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ...core.paths import ProcessId, is_alive, process_id

QUIT = b"q"


def spare_file(socket_path: Path) -> Path:
    """Where the spare of the fork server at a socket is written down."""
    return socket_path.with_name(socket_path.name + ".spare")


def read_spare(socket_path: Path) -> ProcessId | None:
    """The spare, if it is alive: an id that the kernel has given to another process is nobody's."""
    try:
        pid, start = map(int, spare_file(socket_path).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    spare = ProcessId(pid, start)
    return spare if is_alive(spare) else None


class Spare:
    """The server's end of its spare."""

    def __init__(self, socket_path: Path) -> None:
        self.pid: int | None = None
        self._file = spare_file(socket_path)
        self._pipe: int | None = None

    @property
    def own_fds(self) -> tuple[int, ...]:
        """What every other child must close: the spare waits for the last holder's end."""
        return () if self._pipe is None else (self._pipe,)

    def fork(self, settle: Callable[[], None]) -> bool:
        """Fork a spare in place of the one there is; True in the new process when it is needed.

        In the server it returns False at once. The spare calls `settle`, which lets go of all that
        is the server's, and returns when the server has died, or ends.
        """
        self.dismiss()
        reading, writing = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:  # no memory or processes left: serve on without a spare
            print(f"fork server: no spare: {error}", file=sys.stderr, flush=True)
            os.close(reading)
            os.close(writing)
            return False
        if pid:
            os.close(reading)
            self.pid, self._pipe = pid, writing
            self._write_down(pid)
            return False
        os.close(writing)
        settle()
        told = os.read(reading, 1)
        os.close(reading)
        if told == QUIT:
            os._exit(0)
        return True

    def is_gone(self) -> bool:
        """Whether the spare has died; it is then reaped and forgotten."""
        if self.pid is None:
            return False
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                return False
        self._forget()
        return True

    def dismiss(self) -> None:
        """Let the spare end."""
        if self.pid is None or self._pipe is None:
            return
        with contextlib.suppress(OSError):  # it is dead already
            os.write(self._pipe, QUIT)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._forget()

    def _write_down(self, pid: int) -> None:
        spare = process_id(pid)
        if spare is None:
            return  # it died at once
        partial = self._file.with_name(self._file.name + ".partial")
        with contextlib.suppress(OSError):  # a full disk: it is found by its socket instead
            partial.write_text(f"{spare.pid} {spare.start_ticks}", encoding="ascii")
            os.replace(partial, self._file)

    def _forget(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
        self.pid = self._pipe = None
        self._file.unlink(missing_ok=True)
