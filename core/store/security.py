"""How does a client prove itself to etcd, and etcd to the client? File names, never secrets.

TLS when an endpoint is written `https://`, mutual TLS with a certificate of our own, and etcd's
user and password. Secrets stay in files that their owner can replace; they are read when they are
needed and never kept in settings or logs. Standard library only.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RefusedError, UsageError


@dataclass(frozen=True, slots=True)
class EtcdSecurity:
    """What a process is told about etcd's security; the default is plain TCP and no user."""

    ca_file: str = ""  # PEM; empty: the system's authorities
    cert_file: str = ""  # PEM; our certificate, for mutual TLS
    key_file: str = ""
    server_name: str = ""  # the name in etcd's certificate, when it is not the endpoint's host
    user: str = ""
    password_file: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise UsageError(
                "etcd security: cert_file and key_file belong together",
                next_step="give both for mutual TLS, or neither",
            )
        if bool(self.user) != bool(self.password_file):
            raise UsageError(
                "etcd security: user and password_file belong together",
                next_step="give both, or neither",
            )

    def password(self) -> str:
        """The password, read now. Raises RefusedError when the file is open to others."""
        path = Path(self.password_file)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise RefusedError(
                f"{path}: others can read this password file", next_step=f"chmod 600 {path}"
            )
        return read_text(path).strip()

    def root_certificates(self) -> bytes | None:
        """The authorities that may vouch for etcd; None for the system's."""
        return read_text(Path(self.ca_file)).encode() if self.ca_file else None

    def own_certificate(self) -> tuple[bytes | None, bytes | None]:
        """Key and certificate chain of this process; (None, None) without mutual TLS."""
        if not self.cert_file:
            return None, None
        return read_text(Path(self.key_file)).encode(), read_text(Path(self.cert_file)).encode()


def read_text(path: Path) -> str:
    """A file of the settings. Raises RefusedError naming it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RefusedError(
            f"{path}: {error.strerror or error}", next_step="check the etcd security settings"
        ) from error


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One etcd member: where it listens, and whether it speaks TLS."""

    address: str  # "host:port"
    is_tls: bool


def parse_endpoints(endpoints: Sequence[str], security: EtcdSecurity) -> tuple[Endpoint, ...]:
    """Endpoints as written: `host:port`, `http://host:port` or `https://host:port`.

    Raises UsageError on anything else, and on settings that would send a password unencrypted.
    """
    if not endpoints:
        raise UsageError("no etcd endpoint was given", next_step="give at least one host:port")
    parsed = tuple(_parse(endpoint, security) for endpoint in endpoints)
    is_tls = {endpoint.is_tls for endpoint in parsed}
    if len(is_tls) > 1:
        raise UsageError(
            f"etcd endpoints mix http and https: {', '.join(endpoints)}",
            next_step="write all of them https://host:port",
        )
    if security.user and is_tls == {False} and not _all_loopback(parsed):
        raise UsageError(
            "etcd user and password would cross the network unencrypted",
            next_step="write the endpoints https://host:port",
        )
    return parsed


def _parse(endpoint: str, security: EtcdSecurity) -> Endpoint:
    scheme, separator, rest = endpoint.rpartition("://")
    if separator and scheme not in ("http", "https"):
        raise UsageError(
            f"etcd endpoint {endpoint!r}: scheme {scheme!r} is not supported",
            next_step="write host:port, http://host:port or https://host:port",
        )
    wants_tls = bool(security.ca_file or security.cert_file)
    return Endpoint(rest.rstrip("/"), scheme == "https" or (not separator and wants_tls))


def _all_loopback(endpoints: Sequence[Endpoint]) -> bool:
    hosts = (endpoint.address.rpartition(":")[0].strip("[]") for endpoint in endpoints)
    return all(host == "localhost" or host == "::1" or host.startswith("127.") for host in hosts)


def security_from_environment() -> EtcdSecurity:
    """Settings of a command line: the MOECTL_ETCD_ variables that docs/security.md lists."""
    read = os.environ.get
    return EtcdSecurity(
        ca_file=read("MOECTL_ETCD_CA", ""),
        cert_file=read("MOECTL_ETCD_CERT", ""),
        key_file=read("MOECTL_ETCD_KEY", ""),
        server_name=read("MOECTL_ETCD_SERVER_NAME", ""),
        user=read("MOECTL_ETCD_USER", ""),
        password_file=read("MOECTL_ETCD_PASSWORD_FILE", ""),
    )
