"""The whole fleet on this machine: up, talk, scale, break, repair, down. All of it real."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_fleet import FREE_PORTS, Fleet, fleet_home, in_terminal

from moectl.cli.demo.report import is_good
from moectl.cli.instance import connect
from moectl.cli.waiting import wait_transition
from moectl.core.paths import Home, processes_of_instance

pytestmark = pytest.mark.timeout(300)
QUESTION = ("-m", "read a file and count its words", "--max-tokens", "24", "--temperature", "0")


@pytest.fixture
def fleet(running_home: Fleet) -> Fleet:
    return running_home


@pytest.fixture
def own_home() -> Iterator[Fleet]:
    with fleet_home() as found:
        yield found


def test_everything_runs_and_is_shown(fleet: Fleet) -> None:
    answer = fleet.run("status")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for part in ("etcd", "controller", "gateway", "agent-n1", "agent-n2"):
        assert part in answer.stdout
    assert {node["name"] for node in fleet.json("get", "nodes")} == {"n1", "n2"}
    assert fleet.run("get", "models", "-o", "name").stdout == "model/chat\n"
    assert {worker["state"] for worker in fleet.json("get", "workers")} == {"serving"}
    assert len(fleet.json("get", "pages")) == 4


def test_what_is_private_is_readable_by_its_owner_only(fleet: Fleet) -> None:
    for name in ("token", "internal.key", "instance.json"):
        assert (fleet.home / name).stat().st_mode & 0o077 == 0
    assert fleet.home.stat().st_mode & 0o077 == 0
    token = (fleet.home / "token").read_text().strip()
    logs = [path.read_text(errors="replace") for path in fleet.home.rglob("*.log")]
    assert logs and not any(token in text for text in logs)


def test_a_second_up_says_so_and_changes_nothing(fleet: Fleet) -> None:
    before = fleet.json("status")
    answer = fleet.run("up")
    assert answer.returncode == 0
    assert "already running" in answer.stdout
    after = fleet.json("status")
    assert [part["pid"] for part in before["parts"]] == [part["pid"] for part in after["parts"]]


def test_up_of_another_spec_is_refused(fleet: Fleet) -> None:
    answer = fleet.run("up", "-f", "clusters/local-8.yaml")
    assert answer.returncode == 3
    assert "moectl down" in answer.stderr


@pytest.mark.parametrize("width", ["4", "3", "1", "+1"])
def test_scaling_keeps_what_the_model_says(fleet: Fleet, width: str) -> None:
    said = fleet.run("chat", *QUESTION).stdout
    plan = fleet.run("scale", "chat", "--experts", width, "--dry-run")
    assert "moves" in plan.stdout
    ended = fleet.json("scale", "chat", "--experts", width)
    assert ended["phase"] == "done"
    assert ended["prediction"]["bytes_moved"] == ended["prediction"]["bytes_lower_bound"]
    assert ended["actual"]["bytes_copied"] == ended["prediction"]["bytes_moved"]
    assert said.strip()
    assert fleet.run("chat", *QUESTION).stdout == said


def test_the_next_scale_is_accepted_at_the_moment_the_last_one_is_done(fleet: Fleet) -> None:
    with connect(Home(fleet.home)) as client:
        for number, width in enumerate(("1", "3", "2", "4", "2")):
            operation = f"at-once-{number}"
            client.scale("chat", width, operation_id=operation, dry_run=False)
            deadline = time.monotonic() + 60
            while client.get(f"transitions/{operation}")["phase"] != "done":
                assert time.monotonic() < deadline


def test_a_field_of_gitops_is_refused_by_commit_and_file_taken_and_given_back(fleet: Fleet) -> None:
    def owner() -> tuple[str, str]:
        rows = fleet.json("get", "models", "chat", "--show-owner")
        (row,) = [row for row in rows if row["field"] == "parallelism.experts"]
        return row["owner"], row["before"]

    fleet.run("scale", "chat", "--experts", "2")
    with connect(Home(fleet.home)) as client:
        declared = client.get("specs/Model/chat")
        document = {"kind": "Model", "name": "chat", "spec": declared["spec"]}
        document["spec"]["parallelism"]["experts"] = 3
        origin = {"commit": "4f2c1aa", "path": "clusters/chat.yaml"}
        sync = {"documents": [document], "manager": "gitops", "origin": origin}
        client.post("apply", sync | {"take": True, "operation_id": "sync-1"})
        wait_transition(client, "sync-1", 60, lambda transition: None)
    refused = fleet.run("scale", "chat", "--experts", "2")
    assert refused.returncode == 3
    assert "commit 4f2c1aa, clusters/chat.yaml" in refused.stderr
    assert fleet.run("scale", "chat", "--experts", "2", "--take").returncode == 0
    assert owner() == ("admin", "gitops")
    with connect(Home(fleet.home)) as client:  # the machine goes on, and leaves this field alone
        (result,) = client.post("apply", sync)["results"]
    assert (result["action"], result["kept"]) == ("unchanged", ["parallelism.experts"])
    assert fleet.run("release", "chat").returncode == 0
    assert owner() == ("gitops", "")
    # Its value is right already, and the person wants it for themselves all the same.
    again = fleet.run("scale", "chat", "--experts", "2", "--take")
    assert again.returncode == 0 and "is yours now" in again.stdout
    assert owner() == ("admin", "gitops")


def test_a_width_above_the_devices_is_unplaceable(fleet: Fleet) -> None:
    answer = fleet.run("scale", "chat", "--experts", "9")
    assert answer.returncode == 4
    assert "4" in answer.stderr
    assert fleet.run("scale", "nobody", "--experts", "2").returncode == 3


def test_bad_specs_are_refused_with_all_mistakes(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "apiVersion: moectl.dev/v1\nkind: Model\nmetadata: {name: x}\n"
        "spec: {source: {path: a}, parallelism: {expert: 2}, memory: {kvPerDevice: lots}}\n"
    )
    answer = fleet.run("apply", "-f", str(file))
    assert answer.returncode == 3
    assert "expert" in answer.stderr and "kvPerDevice" in answer.stderr


def test_a_missing_checkpoint_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "missing.yaml"
    file.write_text(
        "apiVersion: moectl.dev/v1\nkind: Model\nmetadata: {name: ghost}\n"
        f"spec: {{source: {{path: {tmp_path}/none}}, parallelism: {{experts: 1}}}}\n"
    )
    answer = fleet.run("apply", "-f", str(file))
    assert answer.returncode == 3
    assert "none" in answer.stderr
    assert fleet.run("get", "models", "-o", "name").stdout == "model/chat\n"


def test_applying_the_same_again_changes_nothing(fleet: Fleet) -> None:
    fleet.run("scale", "chat", "--experts", "2")
    before = len(fleet.json("get", "transitions"))
    answer = fleet.run("apply", "-f", "clusters/local.yaml")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("unchanged") == 2
    assert len(fleet.json("get", "transitions")) == before


def test_a_killed_worker_is_healed(fleet: Fleet) -> None:
    said = fleet.run("chat", *QUESTION).stdout
    worker = fleet.json("get", "workers")[-1]
    os.kill(worker["pid"], signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pids = {w["pid"] for w in fleet.json("get", "workers") if w["state"] == "serving"}
        if worker["pid"] not in pids and fleet.run("status").returncode == 0:
            break
    assert fleet.run("status").returncode == 0
    assert fleet.run("chat", *QUESTION).stdout == said


@pytest.mark.parametrize("role", ["gateway", "controller", "agent-n1", "etcd"])
def test_a_killed_part_is_started_again_by_up(fleet: Fleet, role: str) -> None:
    os.kill(fleet.pid(role), signal.SIGKILL)
    answer = fleet.run("status")
    assert answer.returncode == 1
    assert f"{role}" in answer.stdout and "down" in answer.stdout
    mended = fleet.run("up")
    assert mended.returncode == 0, mended.stderr
    said = fleet.run("chat", *QUESTION)
    assert said.returncode == 0 and said.stdout.strip()


def test_the_screen_starts_and_leaves_by_a_key(fleet: Fleet) -> None:
    code, output = in_terminal(fleet, ["top"], "q", until="serving")
    assert code == 0
    assert "Experts" in output


def test_chat_goes_on_over_turns_and_ends_with_its_input(fleet: Fleet) -> None:
    answer = fleet.run("chat", "--max-tokens", "8", text="sort a list\nand reverse it\n")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_down_leaves_nothing_and_can_be_repeated(own_home: Fleet) -> None:
    assert own_home.run("up", *FREE_PORTS, "--no-model").returncode == 0
    instance = own_home.instance()
    assert len(processes_of_instance(instance)) >= 5
    assert own_home.run("down").returncode == 0
    assert processes_of_instance(instance) == []
    assert not own_home.home.exists()
    again = own_home.run("down")
    assert again.returncode == 0
    assert "nothing runs here" in again.stdout


def test_a_port_in_use_is_named_and_nothing_is_left(own_home: Fleet) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        port = str(holder.getsockname()[1])
        ports = ["--api-port", port, "--gateway-port", "0", "--etcd-port", "0"]
        answer = own_home.run("up", *ports)
    assert answer.returncode == 1
    assert port in answer.stderr and "--api-port" in answer.stderr
    assert not (own_home.home / "instance.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("part", ["etcd", "agent-n2"])
def test_an_interrupted_up_is_rolled_back(
    own_home: Fleet, number: signal.Signals, part: str
) -> None:
    process = own_home.start("up", *FREE_PORTS)
    instance = ""
    try:
        wait_for(lambda: (own_home.home / "run" / f"{part}.json").exists(), process)
        instance = own_home.instance()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert processes_of_instance(instance) == []
    assert not (own_home.home / "instance.json").exists()


def wait_for(check: "object", process: "subprocess.Popen[str]") -> None:
    """Wait for a condition while a process runs."""
    end = time.monotonic() + 60
    while not check():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_demo_keeps_its_promises(own_home: Fleet, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    report = own_home.json("demo", "--quiet", "1", "--plot", str(picture))
    assert is_good(report), report
    assert [(s["from"], s["to"]) for s in report["scales"]] == [(2, 4), (4, 3), (3, 2)]
    for scale in report["scales"]:
        assert scale["bytes_moved"] == scale["bytes_lower_bound"] > 0
        assert 1.0 <= scale["peak_bytes_ratio"] <= 2.0
    assert report["worker_kill"]["recovered_s"] > 0
    assert picture.stat().st_size > 10_000


def test_an_interrupted_demo_leaves_nothing(own_home: Fleet, tmp_path: Path) -> None:
    own_home.environment["TMPDIR"] = str(tmp_path)
    process = own_home.start("demo")
    instance = ""
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "agent-n1 is up" in line:
                break
        instance = _demo_instance(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert instance and processes_of_instance(instance) == []
    assert not list(tmp_path.iterdir())


def _demo_instance(pid: int) -> str:
    """The instance id that the demo's children carry."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"MOECTL_INSTANCE="):
                return entry.partition(b"=")[2].decode()
    return ""
