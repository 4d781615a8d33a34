"""An embedded fleet for tests: `moectl` as a person runs it, in a home of its own."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moectl.core.paths import processes_of_instance

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-P", "-m", "moectl.cli.main"]
FREE_PORTS = ["--api-port", "0", "--gateway-port", "0", "--etcd-port", "0"]


class Fleet:
    """A home and the commands run in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "MOECTL_HOME": str(home), "COLUMNS": "100"}

    def run(self, *arguments: str, timeout_s: float = 150, text: str | None = None) -> Any:
        """Run to the end; returns the finished process."""
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            input=text if text is not None else "",
            timeout=timeout_s,
            env=self.environment,
            cwd=ROOT,
            check=False,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command that the test will interrupt."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=ROOT,
        )

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        answer = self.run(*arguments, "-o", "json")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    def instance(self) -> str:
        """The id of the running instance."""
        return str(json.loads((self.home / "instance.json").read_text())["instance"])

    def pid(self, role: str) -> int:
        """Process id of a part, from its run file."""
        return int(json.loads((self.home / "run" / f"{role}.json").read_text())["pid"])


@contextmanager
def fleet_home() -> Iterator[Fleet]:
    """A short-named home, always taken down."""
    folder = Path(tempfile.mkdtemp(prefix="moectl-e2e-"))
    fleet = Fleet(folder / "home")
    instance = ""
    try:
        yield fleet
    finally:
        if (fleet.home / "instance.json").exists():
            instance = fleet.instance()
        fleet.run("down")
        left = processes_of_instance(instance) if instance else []
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        assert not left


def in_terminal(fleet: Fleet, arguments: list[str], keys: str, until: str) -> tuple[int, str]:
    """Run a command on a terminal, press keys once `until` was printed; exit code and output."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [*COMMAND, *arguments], {**fleet.environment, "TERM": "xterm"})
    output = b""
    pressed = False
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # how Linux says that the other side has closed
                break
            if not piece:
                break
            output += piece
            if not pressed and until.encode() in output:
                pressed = True
                os.write(terminal, keys.encode())
        status = _reap(child)
    finally:
        os.close(terminal)
    return status, output.decode(errors="replace")


def _reap(child: int) -> int:
    """The exit code; a child that does not end is killed."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
