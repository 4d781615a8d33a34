"""How is a part of the fleet started so that it outlives the command and can always be found again?

Its own session (a Ctrl-C meant for the command does not reach it), output to its log, a run file
with process id and start time, and the instance in its environment.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import MoectlError
from ..core.paths import (
    Home,
    ProcessId,
    is_alive,
    process_id,
    read_run_file,
    write_private,
    write_run_file,
)
from .instance import Instance, log_hint
from .parts import Part, environment

LOG_TAIL_LINES = 12


@dataclass(slots=True)
class Started:
    """A part that runs; `popen` reaps it when it dies while we still watch, None when adopted."""

    part: Part
    process: ProcessId
    popen: "subprocess.Popen[bytes] | None"


def running_process(home: Home, role: str) -> ProcessId | None:
    """The live process of a role, as its run file names it."""
    run = read_run_file(home.run_dir, role)
    return run.process if run is not None and is_alive(run.process) else None


def start_part(home: Home, instance: Instance, part: Part) -> Started:
    """Start one process and write its run file; raises MoectlError when it cannot be started."""
    if part.settings is not None:
        write_private(home.config_file(part.role), json.dumps(part.settings, indent=1))
    with open(home.log_file(part.role), "ab") as log:
        try:
            popen = subprocess.Popen(
                part.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home.root,
                env=environment(instance, home, part.environment),
                start_new_session=True,
            )
        except OSError as error:
            raise MoectlError(
                f"{part.role} cannot be started: {part.argv[0]}: {error.strerror}",
                next_step="`moectl doctor` checks what this machine lacks",
            ) from error
    process = process_id(popen.pid)
    if process is None:
        popen.wait()
        raise died(home, part.role)
    write_run_file(home.run_dir, part.role, process, part.argv)
    return Started(part, process, popen)


def check_alive(home: Home, started: Started) -> None:
    """Raise MoectlError with the end of its log when a part has died."""
    if started.popen is not None:
        started.popen.poll()
    if not is_alive(started.process):
        raise died(home, started.part.role)


def died(home: Home, role: str) -> MoectlError:
    """The error for a part that ended although nobody asked it to."""
    tail = log_tail(home.log_file(role))
    shown = "\n".join(f"  | {line}" for line in tail) or "  | (its log is empty)"
    return MoectlError(
        f"{role} ended while starting; its log ends with\n{shown}", next_step=log_hint(home, role)
    )


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log, for an error message."""
    try:
        with open(path, "rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 16_384))
            text = log.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line[:400] for line in text.splitlines()[-lines:]]
