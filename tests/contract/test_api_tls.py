"""A controller that speaks TLS on both sides: real certificates, real sockets, real refusals.

Its etcd wants a client certificate; its own API shows one. Commands reach it through a context, as
they reach a fleet elsewhere.
"""

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from etcd_cluster import EtcdCluster, free_ports, make_certificates

from moectl.cli.client import ApiClient
from moectl.core.errors import MoectlError, RefusedError

TOKEN = "the-admin-of-the-tls-fleet"
pytestmark = pytest.mark.timeout(120)


@dataclass
class SecureFleet:
    """Where the API listens, and the folder of the certificates."""

    port: int
    root: Path
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        return str(self.root / "ca.pem")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFleet]:
    root = tmp_path_factory.mktemp("tls")
    security = make_certificates(root)
    cluster = EtcdCluster(root, size=1, tls=security)
    (port,) = free_ports(1)
    settings = {
        "cluster": "test",
        "etcd": cluster.endpoints,
        "etcd_security": asdict(security),
        "host": "127.0.0.1",
        "port": port,
        "admin_token_digest": hashlib.sha256(TOKEN.encode()).hexdigest(),
        "tls_cert_file": str(root / "server.pem"),
        "tls_key_file": str(root / "server.key"),
    }
    (root / "controller.json").write_text(json.dumps(settings))
    argv = [sys.executable, "-P", "-m", "moectl.controller.server"]
    with (root / "controller.log").open("wb") as log:
        argv += ["--config", str(root / "controller.json")]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    found = SecureFleet(port, root, process)
    try:
        wait_ready(found)
        yield found
    finally:
        process.kill()
        process.wait()
        cluster.stop()


def wait_ready(fleet: SecureFleet) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            with ApiClient(fleet.url, TOKEN, ca_file=fleet.ca) as client:
                if client.get("healthz")["leader"]:
                    return
        except MoectlError:
            assert fleet.process.poll() is None, (fleet.root / "controller.log").read_text()
        assert time.monotonic() < end, (fleet.root / "controller.log").read_text()
        time.sleep(0.05)


def moectl(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "MOECTL_HOME": str(home), "COLUMNS": "100"}
    environment.pop("MOECTL_CONTEXT", None)
    argv = [sys.executable, "-P", "-m", "moectl.cli.main", *arguments]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env=environment, check=False, cwd="/"
    )


def test_who_trusts_the_authority_reads_and_writes(fleet: SecureFleet) -> None:
    with ApiClient(fleet.url, TOKEN, ca_file=fleet.ca) as client:
        assert client.get("whoami")["role"] == "admin"
        nodes = [{"name": "n1", "devices": [{"id": "d0", "hbm": "64MiB"}]}]
        cluster = {"kind": "Cluster", "name": "c", "spec": {"nodes": nodes}}
        client.apply([cluster], operation_id="over-tls", dry_run=False)
        seen = next(iter(client.watch()))
    assert seen.missing_nodes == ("n1",)
    assert seen.endpoints["controller"] == fleet.url


def test_who_does_not_trust_it_sends_no_token(fleet: SecureFleet) -> None:
    other = fleet.root / "other"
    other.mkdir(exist_ok=True)
    make_certificates(other)  # an authority that did not sign the API's certificate
    for ca_file in ("", str(other / "ca.pem")):
        with (
            ApiClient(fleet.url, TOKEN, ca_file=ca_file) as client,
            pytest.raises(MoectlError, match="CERTIFICATE_VERIFY_FAILED") as refused,
        ):
            client.get("whoami")
        assert "--ca-file" in refused.value.next_step


def test_the_name_in_the_certificate_is_checked(fleet: SecureFleet) -> None:
    trust = ssl.create_default_context(cafile=fleet.ca)
    with (
        socket.create_connection(("127.0.0.1", fleet.port), 10) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        trust.wrap_socket(plain, server_hostname="moe.example")


def test_an_api_with_tls_does_not_answer_in_the_clear(fleet: SecureFleet) -> None:
    with (
        ApiClient(f"http://127.0.0.1:{fleet.port}", TOKEN) as client,
        pytest.raises(MoectlError, match="does not answer"),
    ):
        client.get("whoami")
    with socket.create_connection(("127.0.0.1", fleet.port), 10) as bare:
        bare.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        bare.settimeout(10)
        assert b"200" not in bare.recv(100)


@pytest.mark.parametrize("content", [None, "", "not a certificate"])
def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RefusedError, match=r"ca\.pem"):
        ApiClient("https://127.0.0.1:1", TOKEN, ca_file=str(file))


def test_commands_reach_the_fleet_through_a_context(fleet: SecureFleet, tmp_path: Path) -> None:
    home, token = tmp_path / "home", tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    about = ("--api", fleet.url, "--token-file", str(token))
    assert moectl(home, "context", "add", "bare", *about).returncode == 0
    assert moectl(home, "context", "add", "prod", *about, "--ca-file", fleet.ca).returncode == 0
    listed = moectl(home, "token", "list", "-o", "name", "--context", "prod")
    assert (listed.returncode, listed.stdout) == (0, "token/admin\n"), listed.stderr
    in_front = moectl(home, "--context", "prod", "token", "list", "-o", "name")
    assert in_front.stdout == listed.stdout
    refused = moectl(home, "get", "nodes", "--context", "bare")
    assert refused.returncode == 1 and "--ca-file" in refused.stderr
    assert moectl(home, "get", "nodes").returncode == 1  # this home has no fleet of its own
    assert moectl(home, "context", "use", "prod").returncode == 0
    assert json.loads(moectl(home, "status", "-o", "json").stdout)["api"] == fleet.url
    assert json.loads(moectl(home, "version", "-o", "json").stdout)["fleet"]
    token.chmod(0o644)
    open_to_all = moectl(home, "get", "nodes")
    assert open_to_all.returncode == 3 and "chmod 600" in open_to_all.stderr
    kept = (home / "contexts.json").read_text()
    assert TOKEN not in kept and (home / "contexts.json").stat().st_mode & 0o077 == 0
