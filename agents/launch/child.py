"""How does a process that was forked live on by itself? In a session and a log of its own."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path


def leave(run: Callable[[], int], log_path: Path | None) -> None:
    """The rest of a child's life, in a session and log of its own; never returns."""
    code = 70
    try:
        os.setsid()
        if log_path is not None:
            write_to(log_path)
        code = run()
    except BaseException as error:  # the last frame of a process: say why, whatever it was
        import traceback

        traceback.print_exception(error)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def write_to(log_path: Path) -> None:
    """Everything that this process says goes to a file, readable by its user only."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def name_process(name: str) -> None:
    """What `ps` and `top` show instead of the fork server's name; 15 characters are kept."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name[:15], encoding="utf-8")
