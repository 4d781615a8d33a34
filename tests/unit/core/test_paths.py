"""Files of an instance are private, and processes are never taken for others."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moectl.core import paths
from moectl.core.errors import MoectlError
from moectl.core.paths import Home, ProcessId

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
)
STUBBORN += "; time.sleep(60)"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait(10)


def identity(process: subprocess.Popen[bytes]) -> ProcessId:
    found = paths.process_id(process.pid)
    assert found is not None
    return found


def test_the_home_comes_from_the_environment_or_the_users_directory(tmp_path: Path) -> None:
    assert Home.from_environment({"MOECTL_HOME": str(tmp_path)}).root == tmp_path
    assert Home.from_environment({"MOECTL_HOME": ""}).root == Path.home() / ".moectl"
    assert Home.from_environment({"MOECTL_HOME": "here"}).root.is_absolute()


def test_directories_are_for_their_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    node = home.node("n1").create()
    for folder in (home.root, home.run_dir, home.etcd_dir, node.root, node.workers_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    home.create()  # twice is harmless
    assert node.worker_socket("chat", "d0").name == "chat.d0.sock"


def test_private_files_are_0600_and_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old", encoding="utf-8")
    file.chmod(0o644)
    paths.write_private(file, "new")
    assert file.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_private_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "token"
    paths.write_private(file, "old")
    with pytest.raises(UnicodeEncodeError):
        paths.write_private(file, "\udcff")
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_running_process_is_known_by_its_start(child: subprocess.Popen[bytes]) -> None:
    process = identity(child)
    assert paths.is_alive(process)
    assert not paths.is_alive(ProcessId(process.pid, process.start_ticks - 1))
    assert paths.process_id(2**22 + 1) is None


def test_a_reused_process_id_is_never_signalled(child: subprocess.Popen[bytes]) -> None:
    process = identity(child)
    former = ProcessId(process.pid, process.start_ticks - 1)
    assert not paths.signal_process(former, signal.SIGKILL)
    assert paths.end_process(former, grace_s=0.0)
    assert child.poll() is None


def test_ending_a_process_waits_until_it_is_gone(child: subprocess.Popen[bytes]) -> None:
    process = identity(child)
    assert paths.end_process(process, grace_s=10.0)
    assert not paths.is_alive(process)
    assert child.wait(10) == -signal.SIGTERM
    assert paths.end_process(process)  # twice is harmless


def test_a_process_that_ignores_the_request_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()  # the handler is in place
        assert paths.end_process(identity(stubborn), grace_s=0.05)
        assert stubborn.wait(10) == -signal.SIGKILL


def test_waiting_for_a_process_has_a_deadline(child: subprocess.Popen[bytes]) -> None:
    assert not paths.wait_gone(identity(child), 0.01)


def test_run_files_survive_a_round_trip_and_broken_ones_are_passed_over(tmp_path: Path) -> None:
    process = ProcessId(123, 456)
    paths.write_run_file(tmp_path, "gateway", process, ["a", "b c"])
    paths.write_run_file(tmp_path, "etcd", process)
    (tmp_path / "cut.json").write_text('{"role": "cut", "pi', encoding="utf-8")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    (tmp_path / "half.json").write_text('{"role": "half", "pid": 1}', encoding="utf-8")
    roles = [(run.role, run.process, run.argv) for run in paths.read_run_files(tmp_path)]
    assert roles == [("etcd", process, ()), ("gateway", process, ("a", "b c"))]
    paths.remove_run_file(tmp_path, "etcd")
    paths.remove_run_file(tmp_path, "etcd")
    assert paths.read_run_file(tmp_path, "etcd") is None


def test_an_instance_finds_its_processes_and_no_others(child: subprocess.Popen[bytes]) -> None:
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, "MOECTL_INSTANCE": "t-1"})
    longer = subprocess.Popen(["sleep", "60"], env={**os.environ, "MOECTL_INSTANCE": "t-12"})
    try:
        assert [p.pid for p in paths.processes_of_instance("t-1")] == [marked.pid]
    finally:
        for process in (marked, longer):
            process.kill()
            process.wait(10)


def test_a_socket_in_a_deep_directory_can_be_bound_and_reached(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 90) / "hmm.sock"
    path.parent.mkdir()
    with pytest.raises(MoectlError, match="too long for a socket"):
        paths.socket_path(path)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with paths.short_socket_path(path) as name:
            server.bind(name)
        server.listen()
        with paths.short_socket_path(path) as name:
            client.connect(name)
    assert path.is_socket()


def test_a_short_socket_path_stays_as_it_is(tmp_path: Path) -> None:
    path = Path("/run/x.sock")
    assert paths.socket_path(path) == "/run/x.sock"
    with paths.short_socket_path(path) as name:
        assert name == "/run/x.sock"


def test_an_instance_file_that_was_cut_off_counts_as_none(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.read_instance() is None
    home.instance_file.write_text('{"instance": "x"', encoding="utf-8")
    assert home.read_instance() is None
    home.instance_file.write_text('{"instance": "x"}', encoding="utf-8")
    assert home.read_instance() == {"instance": "x"}
