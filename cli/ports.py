"""Which ports does an embedded fleet listen on, and are they free? Asked before anything is
started.

A port that is taken is an error that names the port, its holder's likely nature and the flag to
change it: a fleet that silently moves elsewhere is a fleet that nobody finds. 0 asks for a free
one.
"""

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..core.errors import MoectlError, UsageError

LOOPBACK = "127.0.0.1"
FLAGS = {
    "api": "--api-port",
    "gateway": "--gateway-port",
    "etcd_client": "--etcd-port",
    "etcd_peer": "--etcd-port (the peer port is the next one)",
}


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of an instance, all on the loopback address."""

    api: int = 8401
    gateway: int = 8400
    etcd_client: int = 8402
    etcd_peer: int = 8403

    def to_plain(self) -> dict[str, int]:
        """As kept in `instance.json`."""
        return asdict(self)


def choose_ports(api: int, gateway: int, etcd: int) -> Ports:
    """Fill in free ports for zeros and check the others.

    Raises:  UsageError for a number that is no port or is given twice; MoectlError when one is
    taken.
    """
    wanted = {
        "api": api,
        "gateway": gateway,
        "etcd_client": etcd,
        "etcd_peer": etcd + 1 if etcd else 0,
    }
    for name, port in wanted.items():
        if not 0 <= port <= 65535:
            raise UsageError(f"{FLAGS[name]} {port}: a port is between 1 and 65535, or 0 for any")
    _refuse_doubles(wanted)
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        for name, port in wanted.items():
            held.append(_bind(name, port))  # kept until all are known, so that none comes twice
            chosen[name] = held[-1].getsockname()[1]
    finally:
        for sock in held:
            sock.close()
    return Ports(**chosen)


def is_port_free(port: int) -> bool:
    """Whether a server could listen on a port of the loopback address now."""
    try:
        _bind("api", port).close()
    except MoectlError:
        return False
    return True


def _refuse_doubles(wanted: Mapping[str, int]) -> None:
    seen: dict[int, str] = {}
    for name, port in wanted.items():
        if port and port in seen:
            raise UsageError(f"{FLAGS[name]} and {FLAGS[seen[port]]} are both {port}")
        seen[port] = name


def _bind(name: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # As servers do: a port in TIME_WAIT counts as free, a listening one does not.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise MoectlError(
            f"port {port} on {LOOPBACK} ({name}) cannot be used: {error.strerror}",
            next_step=f"choose another with {FLAGS[name]} (0 = any free one), or end what uses it",
        ) from error
    return sock
