"""The controller as a process: over a real etcd, ended by signals, refusing what it cannot use."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from moectl.controller.config import load_server_config
from moectl.controller.server import listen, main
from moectl.core.errors import RefusedError, UsageError
from moectl.core.store.embedded import EmbeddedEtcd

TOKEN = "the-admin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings(tmp_path: Path, **changes: object) -> Path:
    values = {
        "cluster": "test",
        "etcd": ["127.0.0.1:1"],
        "host": "127.0.0.1",
        "port": free_port(),
        "admin_token_digest": hashlib.sha256(TOKEN.encode()).hexdigest(),
    } | changes
    path = tmp_path / "controller.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    server = EmbeddedEtcd(tmp_path / "etcd", port, free_port(), tmp_path / "etcd.log")
    process = server.start()
    try:
        asyncio.run(server.wait_healthy(30))
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def start(path: Path) -> subprocess.Popen:
    argv = [sys.executable, "-P", "-m", "moectl.controller.server", "--config", str(path)]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)


def wait_ready(url: str, process: subprocess.Popen) -> dict:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            answer = httpx.get(f"{url}/v1/healthz", trust_env=False)
            if answer.status_code == 200 and answer.json()["leader"]:
                return answer.json()
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not ready; exit {process.poll()}")


def test_it_leads_answers_and_ends_on_a_signal_while_watched(etcd: str, tmp_path: Path) -> None:
    path = settings(tmp_path, etcd=[etcd])
    url = f"http://127.0.0.1:{json.loads(path.read_text())['port']}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    process = start(path)
    try:
        wait_ready(url, process)
        with httpx.stream("GET", f"{url}/v1/watch", headers=headers, trust_env=False) as watch:
            lines = watch.iter_lines()
            assert next(lines) == "event: fleet"
            assert json.loads(next(lines).removeprefix("data: "))["cluster"] == "test"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        assert TOKEN not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_killed_hard_its_successor_leads_with_everything_it_wrote(
    etcd: str, tmp_path: Path
) -> None:
    path = settings(tmp_path, etcd=[etcd], lease_ttl_s=2.0)
    url = f"http://127.0.0.1:{json.loads(path.read_text())['port']}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    devices = [{"id": "d0", "hbm": "64MiB"}]
    cluster = {
        "kind": "Cluster",
        "name": "c",
        "spec": {"nodes": [{"name": "n1", "devices": devices}]},
    }
    first = start(path)
    second = None
    try:
        wait_ready(url, first)
        answer = httpx.post(
            f"{url}/v1/apply", json={"documents": [cluster]}, headers=headers, trust_env=False
        )
        assert answer.status_code == 200
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        second = start(path)
        wait_ready(url, second)
        (spec,) = httpx.get(f"{url}/v1/specs/Cluster", headers=headers, trust_env=False).json()
        assert spec["name"] == "c"
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
                process.stderr.close()


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RefusedError, match=str(port)):
            listen("127.0.0.1", port)
        assert main(["--config", str(settings(tmp_path, port=port))]) == 3


@pytest.mark.parametrize(
    "changes",
    [{"etcd": []}, {"port": 70000}, {"admin_token_digest": "the-admin"}, {"colour": "red"}],
)
def test_bad_settings_are_named(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        load_server_config(settings(tmp_path, **changes))
    assert main(["--config", str(tmp_path / "controller.json")]) == 2


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json"):
        load_server_config(tmp_path / "none.json")
