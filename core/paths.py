"""Where an embedded fleet keeps its files, and how its processes are known and ended.

One directory (`$MOECTL_HOME`, default `~/.moectl`) holds everything that an instance leaves on a
machine, so that removing it removes the instance:

    instance.json  token  internal.key  run/ROLE.json  logs/ROLE.log  etcd/
    nodes/NODE/    hmm.sock  fork.sock  workers/MODEL.DEVICE.sock  run/  logs/

A process is its id *and* its start time, so that a process id that the kernel gave to somebody else
is never signalled; nothing here ends a process by name. Standard library only, Linux only.
"""

import contextlib
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MoectlError

HOME_VARIABLE = "MOECTL_HOME"
INSTANCE_VARIABLE = "MOECTL_INSTANCE"
# The kernel's limit is 108 with the final NUL; the margin is for peers that count differently.
SOCKET_PATH_BYTES_MAX = 100
KILL_WAIT_S = 5.0  # a SIGKILLed process can outlive this only in an uninterruptible wait


@dataclass(frozen=True, slots=True)
class NodeHome:
    """The directory of one node; private to its agent and what that agent starts."""

    root: Path

    @property
    def hmm_socket(self) -> Path:
        """Where the HBM manager listens."""
        return self.root / "hmm.sock"

    @property
    def fork_socket(self) -> Path:
        """Where the fork server listens."""
        return self.root / "fork.sock"

    @property
    def workers_dir(self) -> Path:
        """Control sockets of workers."""
        return self.root / "workers"

    def worker_socket(self, model: str, device: str) -> Path:
        """Where the worker of a model on a device of this node listens for its agent."""
        return self.workers_dir / f"{model}.{device}.sock"

    @property
    def run_dir(self) -> Path:
        """Run files of the processes that this node's agent started."""
        return self.root / "run"

    @property
    def logs_dir(self) -> Path:
        """Logs of the processes that this node's agent started."""
        return self.root / "logs"

    def log_file(self, role: str) -> Path:
        """Log of one process of this node."""
        return self.logs_dir / f"{role}.log"

    def create(self) -> "NodeHome":
        """Make the directories, readable by their owner only; harmless when they exist."""
        _make_private(self.root, self.workers_dir, self.run_dir, self.logs_dir)
        return self


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of an embedded fleet."""

    root: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Home":
        """`$MOECTL_HOME`, or `~/.moectl` when it is unset or empty."""
        values = os.environ if environ is None else environ
        chosen = values.get(HOME_VARIABLE, "")
        return cls(Path(chosen).expanduser().absolute() if chosen else Path.home() / ".moectl")

    @property
    def instance_file(self) -> Path:
        """What runs here: instance id, ports, cluster, path of the spec."""
        return self.root / "instance.json"

    @property
    def token_file(self) -> Path:
        """The admin's bearer token, as text."""
        return self.root / "token"

    @property
    def internal_key_file(self) -> Path:
        """The hex secret with which gateway and workers know each other."""
        return self.root / "internal.key"

    @property
    def run_dir(self) -> Path:
        """Run files of the processes that `moectl up` started."""
        return self.root / "run"

    @property
    def logs_dir(self) -> Path:
        """Logs of the processes that `moectl up` started."""
        return self.root / "logs"

    def log_file(self, role: str) -> Path:
        """Log of one role."""
        return self.logs_dir / f"{role}.log"

    def config_file(self, role: str) -> Path:
        """Settings that a role is started with; private, since some hold secrets."""
        return self.run_dir / f"{role}.config"

    @property
    def etcd_dir(self) -> Path:
        """Data of the embedded etcd."""
        return self.root / "etcd"

    @property
    def nodes_dir(self) -> Path:
        """One directory a node."""
        return self.root / "nodes"

    def node(self, name: str) -> NodeHome:
        """The directory of one node."""
        return NodeHome(self.nodes_dir / name)

    def create(self) -> "Home":
        """Make the directories, readable by their owner only; harmless when they exist."""
        _make_private(self.root, self.run_dir, self.logs_dir, self.etcd_dir, self.nodes_dir)
        return self

    def read_instance(self) -> dict[str, Any] | None:
        """The content of `instance.json`; None when no instance is recorded (or it is cut off)."""
        return _read_object(self.instance_file)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat: clock ticks from boot to its start


@dataclass(frozen=True, slots=True)
class RunFile:
    """A process that was started, as written down at its start."""

    role: str
    process: ProcessId
    argv: tuple[str, ...]


def process_id(pid: int) -> ProcessId | None:
    """The identity of a running process, or None when it is gone (a zombie is gone)."""
    stat = _stat_fields(pid)
    return None if stat is None or stat[0] in "ZX" else ProcessId(pid, int(stat[19]))


def is_alive(process: ProcessId) -> bool:
    """Whether this very process still runs."""
    return process_id(process.pid) == process


def is_stopped(process: ProcessId) -> bool:
    """Whether the kernel holds it stopped: by SIGSTOP, or by a debugger."""
    stat = _stat_fields(process.pid)
    return stat is not None and stat[0] in "Tt"


def end_process(process: ProcessId, grace_s: float = 5.0) -> bool:
    """SIGTERM, and SIGKILL after `grace_s`; waits until it is gone and says whether it is.

    A child of the caller stays a zombie until the caller reaps it; it counts as gone.
    """
    for signal_number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_WAIT_S)):
        if not signal_process(process, signal_number) or wait_gone(process, wait_s):
            return True
    return not is_alive(process)


def signal_process(process: ProcessId, signal_number: int) -> bool:
    """Send a signal to this very process; False when it is gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        # Checked after the handle is open: the handle keeps meaning the process that was checked.
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(handle, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_gone(process: ProcessId, deadline_s: float) -> bool:
    """Wait at most `deadline_s` for a process to end; says whether it did."""
    end = time.monotonic() + deadline_s
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        while is_alive(process):
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            poller.poll(min(left_s, 0.5) * 1000)
    finally:
        os.close(handle)
    return True


def processes_of_instance(instance: str) -> list[ProcessId]:
    """Every live process that was started with `MOECTL_INSTANCE=instance`, ascending by id."""
    wanted = f"{INSTANCE_VARIABLE}={instance}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and wanted in _environment_of(int(entry)):
            process = process_id(int(entry))
            if process is not None:
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read (0600), whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)  # mkstemp made it 0600
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_run_file(
    folder: Path, role: str, process: ProcessId, argv: Sequence[str] = ()
) -> RunFile:
    """Write down a started process as `folder/ROLE.json`."""
    content = {"role": role, "pid": process.pid, "start_ticks": process.start_ticks}
    write_private(folder / f"{role}.json", json.dumps(content | {"argv": list(argv)}))
    return RunFile(role, process, tuple(argv))


def read_run_files(folder: Path) -> list[RunFile]:
    """Every run file of a folder, by role; unreadable ones (a write cut off) are passed over."""
    runs = [_read_run(path) for path in sorted(folder.glob("*.json"))]
    return [run for run in runs if run is not None]


def read_run_file(folder: Path, role: str) -> RunFile | None:
    """One run file, or None."""
    return _read_run(folder / f"{role}.json")


def _read_run(path: Path) -> RunFile | None:
    content = _read_object(path)
    if content is None:
        return None
    try:
        process = ProcessId(int(content["pid"]), int(content["start_ticks"]))
        return RunFile(str(content["role"]), process, tuple(content["argv"]))
    except (KeyError, TypeError, ValueError):
        return None


def remove_run_file(folder: Path, role: str) -> None:
    """Forget a process; harmless when nothing is known of it."""
    (folder / f"{role}.json").unlink(missing_ok=True)


def socket_path(path: Path) -> str:
    """The path of a Unix socket as text; raises MoectlError when the kernel would refuse it.

    Code that must work in any directory binds and connects inside `short_socket_path` instead.
    """
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES_MAX:
        raise MoectlError(
            f"{path}: {length} bytes are too long for a socket (at most {SOCKET_PATH_BYTES_MAX})",
            next_step=f"set {HOME_VARIABLE} to a shorter directory",
        )
    return str(path)


@contextlib.contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """A name of the socket `path` that fits the kernel's limit; valid inside the `with` only.

    A long path is reached through a descriptor of its directory: /proc/self/fd/N/NAME. The socket
    file itself is made where `path` says, and stays there.
    """
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield socket_path(Path(f"/proc/self/fd/{folder}/{path.name}"))
    finally:
        os.close(folder)


def _make_private(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; the second may hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return []
