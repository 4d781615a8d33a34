"""How does an HMM pass everything to its successor, while its clients notice nothing?

The successor connects like any client and says "hand_over". Then, on that connection:

    old -> new   {"ok": true, "fds": N} and N descriptors: the state as JSON in a memfd, the lock,
                 the listening socket, devices, channels, and every client's connection
    new -> old   {"ready": true}      all of it is understood
    old -> new   {"go": true}         and the old one ends without touching a thing

Until "go" the old one can change its mind, and the new one has changed nothing: whichever dies, the
other serves on; if both die, the journal is left. Clients keep their connections, half-sent
messages and unread answers included. Standard library only.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import MemoryPoolError, ProtocolError
from ...core.paths import ProcessId, short_socket_path
from . import wire
from .channels import Channel
from .connection import Connection
from .listener import Place
from .recovery import replay
from .requests import claims_of
from .table import Session, Table

STEP_S = 1.0  # each message of the exchange; it takes milliseconds, and nobody else is served


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a successor starts with."""

    place: Place
    connections: list[Connection]
    predecessor: socket.socket


def give(
    table: Table, place: Place, successor: socket.socket, others: Iterable[Connection]
) -> None:
    """Pass everything on; returns when the successor has it. Raises MemoryPoolError if it has not.

    After an error nothing has changed and the caller serves on.
    """
    kept = [(each, told) for each in others if (told := each.pack()) is not None]
    held = table.state.devices
    devices = sorted(name for name in held if held[name].handle.fd >= 0)  # others have a holder
    channels = [table.channels.known(name) for name in table.channels.names()]
    state = {
        "effects": table.state.snapshot(),
        "devices": devices,
        "channels": [[c.name, c.ranks, c.bytes_per_rank] for c in channels],
        "connections": [told for _, told in kept],
        "lost": table.state.lost,
        "pretouch": table.pretouch.limits(),
    }
    memory = _memory_of(json.dumps(state).encode())
    fds = [memory, place.lock, place.listener.fileno()]
    fds += [table.state.devices[name].handle.fd for name in devices]
    fds += [fd for channel in channels for fd in channel.fds]
    fds += [connection.sock.fileno() for connection, _ in kept]
    try:
        successor.settimeout(STEP_S)
        successor.sendall(wire.pack({"ok": True, "fds": len(fds)}))
        for at in range(0, len(fds), wire.FDS_PER_MESSAGE):
            socket.send_fds(successor, [b"F"], fds[at : at + wire.FDS_PER_MESSAGE])
        if not _receive(successor).get("ready"):
            raise MemoryPoolError("the successor did not say that it is ready")
        successor.sendall(wire.pack({"go": True}))
    except (OSError, ProtocolError) as error:
        raise MemoryPoolError(f"the successor was lost: {error}") from error
    finally:
        os.close(memory)


def take(table: Table, path: Path, now: float) -> Inherited:
    """Ask the HMM at `path` for everything; raises MemoryPoolError, and then it serves on."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fds: list[int] = []
    try:
        sock.settimeout(STEP_S)
        with short_socket_path(path) as name:
            sock.connect(name)
        sock.sendall(wire.pack({"op": "hello", "name": "successor"}))
        _receive(sock)
        sock.sendall(wire.pack({"op": "hand_over"}))
        _receive(sock)  # that it was understood
        count = int(_receive(sock).get("fds", 0))
        while len(fds) < count:
            mark, received, _, _ = socket.recv_fds(sock, 1, wire.FDS_PER_MESSAGE)
            fds += received
            if mark != b"F" or not received:
                raise MemoryPoolError("descriptors did not arrive")
        inherited = _build(table, path, fds, sock, now)
        sock.sendall(wire.pack({"ready": True}))
        if not _receive(sock).get("go"):
            raise MemoryPoolError("the predecessor has changed its mind")
    except (OSError, ProtocolError, ValueError, KeyError, TypeError) as error:
        sock.close()
        raise MemoryPoolError(
            f"nothing was handed over by the HMM at {path}: {error}",
            next_step="it serves on if it was alive; start without --take-over if it is not",
        ) from error
    sock.close()
    return inherited


def _build(table: Table, path: Path, fds: list[int], sock: socket.socket, now: float) -> Inherited:
    left = list(fds)
    with os.fdopen(left.pop(0), "rb") as memory:
        memory.seek(0)
        state = json.loads(memory.read())
    lock, listener = left.pop(0), socket.socket(fileno=left.pop(0))
    devices = {str(name): left.pop(0) for name in state["devices"]}
    table.state.restore(replay(state["effects"]), devices, now)
    table.state.lost = list(state["lost"])
    for name, limit in state.get("pretouch", {}).items():  # an older HMM touched nothing
        table.pretouch.set_limit(str(name), int(limit))
    for name, ranks, size in state["channels"]:
        memfd, bells = left.pop(0), tuple(left.pop(0) for _ in range(ranks * ranks))
        table.channels.restore(Channel(str(name), int(ranks), int(size), memfd, bells))
    connections = [_connection(table, left.pop(0), told) for told in state["connections"]]
    return Inherited(Place(path, listener, lock), connections, sock)


def _connection(table: Table, fd: int, told: dict[str, Any]) -> Connection:
    pid, ticks = told["process"]
    session = Session(str(told["name"]), ProcessId(int(pid), int(ticks)), maps=bool(told["maps"]))
    for number in told["reservations"]:
        if table.state.resume(int(number), session.process):
            session.reservations.add(int(number))
    for name, asked in told.get("asked", {}).items():
        claims = claims_of({"claims": asked}, "claims")
        table.state.device(str(name)).asked[session.key] = claims
    connection = Connection(socket.socket(fileno=fd), table, session)
    connection.pending = bytes.fromhex(told["unread"]), bytes.fromhex(told["unsent"])
    return connection


def _receive(sock: socket.socket) -> dict[str, Any]:
    header = _exactly(sock, wire.HEADER.size)
    message = wire.unpack(_exactly(sock, wire.checked_length(header, wire.FRAME_BYTES_MAX)))
    if message.get("ok") is False:
        error = message.get("error")
        told = error.get("message") if isinstance(error, dict) else error
        raise MemoryPoolError(f"it refused: {told}")
    return message


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("it closed the connection")
        data += piece
    return bytes(data)


def _memory_of(data: bytes) -> int:
    fd = os.memfd_create("moectl-handover", os.MFD_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        stack.pop_all()
    return fd
