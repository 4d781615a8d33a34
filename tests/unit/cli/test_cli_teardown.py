"""Ending a fleet: by id, in order, with leftovers, whatever is missing. Real processes."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moectl.cli.home_lock import home_lock
from moectl.cli.instance import Instance, load_instance, save_instance
from moectl.cli.launch import died, running_process, start_part
from moectl.cli.parts import Part
from moectl.cli.ports import Ports
from moectl.cli.teardown import tear_down
from moectl.core.errors import ConflictError, MoectlError, RefusedError
from moectl.core.paths import Home, is_alive, processes_of_instance, write_private

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (
    sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
    "time.sleep(600)",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path / "home").create()
    yield found
    tear_down(found, keep_logs=False, report=lambda role, outcome: None)


@pytest.fixture
def instance(home: Home) -> Instance:
    spec = {"nodes": [{"name": "n1"}], "leaseTtl": "5s"}
    found = Instance(f"test-{os.getpid()}-{id(home)}", 0.0, "x.yaml", "local", spec, Ports())
    save_instance(home, found)
    return found


def test_parts_end_in_order_and_state_is_removed(home: Home, instance: Instance) -> None:
    for role in ("etcd", "agent-n1", "controller", "gateway"):
        start_part(home, instance, Part(role, SLEEP))
    told: list[tuple[str, str]] = []
    result = tear_down(home, keep_logs=False, report=lambda *words: told.append(words))
    assert [role for role, outcome in told if outcome == "ok"] == [
        "gateway", "controller", "agent-n1", "etcd",
    ]  # fmt: skip
    assert not result.survivors
    assert not processes_of_instance(instance.instance)
    assert not home.root.exists()


def test_a_second_teardown_finds_nothing(home: Home, instance: Instance) -> None:
    start_part(home, instance, Part("etcd", SLEEP))
    tear_down(home, keep_logs=False, report=lambda *words: None)
    again = tear_down(home, keep_logs=False, report=lambda *words: None)
    assert (again.ended, again.leftovers, again.was_running) == ((), 0, False)


def test_processes_without_a_run_file_are_found_by_their_mark(
    home: Home, instance: Instance
) -> None:
    orphan = subprocess.Popen(SLEEP, env={**os.environ, "MOECTL_INSTANCE": instance.instance})
    other = subprocess.Popen(SLEEP, env={**os.environ, "MOECTL_INSTANCE": "somebody-else"})
    try:
        result = tear_down(home, keep_logs=False, report=lambda *words: None)
        assert result.leftovers == 1
        assert orphan.wait(5) != 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_part_that_ignores_the_signal_is_killed(
    home: Home, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moectl.cli.parts.GRACE_S", {"gateway": 0.2})
    started = start_part(home, instance, Part("gateway", STUBBORN))
    while not home.log_file("gateway").read_text():  # until it ignores the signal
        assert is_alive(started.process)
    result = tear_down(home, keep_logs=False, report=lambda *words: None)
    assert result.ended == ("gateway",)
    assert not is_alive(started.process)


def test_a_reused_process_id_is_never_signalled(home: Home, instance: Instance) -> None:
    innocent = subprocess.Popen(SLEEP)
    try:
        record = {"role": "gateway", "pid": innocent.pid, "start_ticks": 1, "argv": []}
        write_private(home.run_dir / "gateway.json", json.dumps(record))
        tear_down(home, keep_logs=False, report=lambda *words: None)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_only_our_own_files_are_removed_and_logs_kept_on_request(
    home: Home, instance: Instance
) -> None:
    (home.root / "notes.txt").write_text("mine")
    node = home.node("n1").create()
    node.log_file("worker").write_text("told")
    (node.root / "hmm.sock").write_text("")
    (home.nodes_dir / "import.lock").write_text("")  # of all nodes, beside their folders
    home.log_file("etcd").write_text("told")
    tear_down(home, keep_logs=True, report=lambda *words: None)
    left = sorted(p.relative_to(home.root).as_posix() for p in home.root.rglob("*") if p.is_file())
    assert left == ["logs/etcd.log", "nodes/n1/logs/worker.log", "notes.txt"]
    tear_down(home, keep_logs=False, report=lambda *words: None)
    assert [p.name for p in home.root.iterdir()] == ["notes.txt"]


def test_a_dead_part_is_told_with_the_end_of_its_log(home: Home, instance: Instance) -> None:
    argv = (sys.executable, "-c", "print('no such luck'); raise SystemExit(3)")
    try:
        started = start_part(home, instance, Part("gateway", argv))
        assert started.popen is not None
        started.popen.wait()
        error = died(home, "gateway")
    except MoectlError as early:  # it may be gone before it is looked at
        error = early
    assert "no such luck" in error.message
    assert running_process(home, "gateway") is None


def test_a_program_that_is_not_there_is_an_error_of_ours(home: Home, instance: Instance) -> None:
    with pytest.raises(MoectlError, match="cannot be started"):
        start_part(home, instance, Part("etcd", ("/nowhere/etcd",)))


def test_the_home_is_held_by_one_command_at_a_time(home: Home) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with home_lock(home):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        with pytest.raises(ConflictError), home_lock(home):
            pass
    finally:
        release.set()
        thread.join()
    with home_lock(home):
        pass


def test_an_instance_of_another_version_is_refused_not_guessed_at(home: Home) -> None:
    write_private(home.instance_file, json.dumps({"instance": "x", "ports": {"api": 1}}))
    with pytest.raises(RefusedError, match="another version"):
        load_instance(home)
