"""A real etcd cluster for tests: members that can be killed, paused, restarted; TLS; users.

Every member is a process of its own; only these processes are signalled, by their ids.
"""

import asyncio
import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from moectl.core.errors import StoreError
from moectl.core.store.embedded import find_binary
from moectl.core.store.etcd import EtcdStore
from moectl.core.store.security import EtcdSecurity


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def until_stopped(pid: int, limit_s: float = 10.0) -> None:
    """Until a child that got SIGSTOP has stopped with all of its threads: one may still answer."""
    end = time.monotonic() + limit_s
    while os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is None:
        assert time.monotonic() < end, f"process {pid} does not stop"
        time.sleep(0.001)


@dataclass
class Member:
    name: str
    argv: list[str]
    endpoint: str
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(timeout=10)
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        until_stopped(self.process.pid)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class EtcdCluster:
    """`size` members on loopback, started. Call `stop` in the end."""

    def __init__(
        self, root: Path, size: int = 3, tls: EtcdSecurity | None = None, quota: int = 0
    ) -> None:
        ports, scheme = free_ports(2 * size), "https" if tls else "http"
        peers = ",".join(f"m{i}=http://127.0.0.1:{ports[2 * i + 1]}" for i in range(size))
        self.security = tls
        self.members = []
        for i in range(size):
            client, peer = f"{scheme}://127.0.0.1:{ports[2 * i]}", ports[2 * i + 1]
            flags = {
                "name": f"m{i}",
                "data-dir": str(root / f"m{i}"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-cluster": peers,
                "heartbeat-interval": "50",
                "election-timeout": "500",
                "logger": "zap",
                "log-level": "warn",
            }
            if quota:
                flags["quota-backend-bytes"] = str(quota)
            if tls:
                flags |= {
                    "cert-file": str(root / "server.pem"),
                    "key-file": str(root / "server.key"),
                    "trusted-ca-file": tls.ca_file,
                    "client-cert-auth": "true",
                }
            argv = [str(find_binary()), *(f"--{key}={value}" for key, value in flags.items())]
            self.members.append(Member(f"m{i}", argv, client, root / f"m{i}.log"))
        for member in self.members:
            member.start()

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def store(self, deadline_s: float = 5.0, security: EtcdSecurity | None = None) -> EtcdStore:
        return EtcdStore(self.endpoints, deadline_s, security or self.security)

    async def wait_healthy(self, limit_s: float = 20.0) -> None:
        """Until every member sees a leader."""
        end = time.monotonic() + limit_s
        for member in self.members:
            while not await self._is_healthy(member.endpoint):
                assert time.monotonic() < end, f"{member.name} is not healthy"
                await asyncio.sleep(0.05)

    async def without_leader(self, index: int, limit_s: float = 20.0) -> None:
        """Until a member that was left alone knows that it has no leader."""
        end = time.monotonic() + limit_s
        while await self._is_healthy(self.members[index].endpoint):
            assert time.monotonic() < end, "a member alone still believes in its leader"
            await asyncio.sleep(0.05)

    async def _is_healthy(self, endpoint: str) -> bool:
        store = EtcdStore([endpoint], 1.0, self.security)
        try:
            return (await store.status()).has_leader
        except StoreError:
            return False
        finally:
            await store.close()

    async def leader(self) -> Member:
        """The member that leads now."""
        from moectl.core.store import etcd_wire_pb2 as wire
        from moectl.core.store.etcd_messages import STATUS

        for _ in range(100):
            for member in self.members:
                if member.process is None:
                    continue
                store = EtcdStore([member.endpoint], 1.0, self.security)
                try:
                    answer = await store._connection.read(STATUS, wire.StatusRequest())
                    if answer.leader and answer.leader == answer.header.member_id:
                        return member
                except StoreError:
                    pass
                finally:
                    await store.close()
            await asyncio.sleep(0.1)
        raise AssertionError("no member leads")

    def stop(self) -> None:
        for member in self.members:
            member.kill()


def etcdctl(cluster: EtcdCluster, *arguments: str, user: str = "") -> None:
    """Run etcd's own tool against the cluster: what our client has no verb for."""
    tool = find_binary().with_name("etcdctl")
    flags = [f"--endpoints={cluster.endpoints[0]}", *([f"--user={user}"] if user else [])]
    tls = cluster.security
    if tls:
        flags += [f"--cacert={tls.ca_file}", f"--cert={tls.cert_file}", f"--key={tls.key_file}"]
    subprocess.run([str(tool), *flags, *arguments], check=True, capture_output=True, timeout=20)


def make_certificates(root: Path) -> EtcdSecurity:
    """An authority, etcd's certificate (server.pem, server.key) and one of a client."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)

    def save(name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        pem = serialization.Encoding.PEM
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (root / f"{name}.key").write_bytes(private)
        (root / f"{name}.pem").write_bytes(certificate.public_bytes(pem))

    def build(
        subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, is_ca: bool
    ) -> x509.CertificateBuilder:
        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        alt = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alt), critical=False)
        )

    authority = ec.generate_private_key(ec.SECP256R1())
    save(
        "ca",
        authority,
        build("test-ca", "test-ca", authority, True).sign(authority, hashes.SHA256()),
    )
    for subject in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        save(subject, key, build(subject, "test-ca", key, False).sign(authority, hashes.SHA256()))
    return EtcdSecurity(
        ca_file=str(root / "ca.pem"),
        cert_file=str(root / "client.pem"),
        key_file=str(root / "client.key"),
    )
