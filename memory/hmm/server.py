"""How does one small process own a node's memory and outlive everything that uses it?

    python -m moectl.memory.hmm.server --socket PATH --node NAME --devices JSON --ready-fd N

JSON is a list of {"id", "hbm_bytes", "page_bytes"}. The word "ready" is written to descriptor N,
which is then closed, once clients can connect. SIGTERM and SIGINT end it and remove its socket.

One thread, one selector, no blocking call: a client that sends nonsense, stalls in the middle of a
message, never reads or dies hurts only its own connection. It never touches a page, so neither a
full machine nor a bad mapping can kill it with SIGBUS. Standard library only, and it must stay so:
it has to start in a fraction of a second and be too dull to crash.
"""

import argparse
import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import InvariantError, MoectlError, UsageError
from ..host import HostBackend
from .connection import Connection
from .listener import listening, peer_uid
from .table import Table

CLIENTS_MAX = 256  # workers, agents and tools of one node, with room
ACCEPTS_PER_TURN = 64  # then it is the turn of those who are connected
IDLE_CHECK_S = 1.0  # the pool's invariant is checked when nothing was asked for this long
LOG_LINES_PER_S_MAX = 20


class Server:
    """The loop: accept, read, answer, write."""

    def __init__(self, listener: socket.socket, table: Table, own_uid: int) -> None:
        self._listener = listener
        self._table = table
        self._own_uid = own_uid
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, Connection] = {}
        self._log = LimitedLog()
        self._is_checked = True
        self._listen_after: float | None = None  # set while out of descriptors
        self._stopping = False
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)

    def watch_signals(self) -> None:
        """SIGTERM and SIGINT end `run`; to be called before anyone is told that we are ready."""
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self) -> None:
        """Serve until a signal says stop; then close every connection and descriptor."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        while not self._stopping:
            self._turn()
        for connection in list(self._connections.values()):
            self._drop(connection, "")
        self._table.close()

    def _turn(self) -> None:
        events = self._selector.select(self._timeout_s())
        if not events:
            self._check_when_idle()
        for key, mask in events:
            if key.fileobj is self._listener:
                self._accept_waiting()
            elif key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            else:
                self._serve(key.data, mask)
        self._drop_stalled()
        self._listen_again()

    def _timeout_s(self) -> float | None:
        if any(connection.deadline is not None for connection in self._connections.values()):
            return IDLE_CHECK_S
        return None if self._is_checked and self._listen_after is None else IDLE_CHECK_S

    def _accept_waiting(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors
                self._log.line(f"accept failed: {error}")
                self._selector.unregister(self._listener)  # else it would be ready again at once
                self._listen_after = time.monotonic() + IDLE_CHECK_S
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        uid = peer_uid(sock)
        if uid not in (self._own_uid, 0) or len(self._connections) >= CLIENTS_MAX:
            self._log.line(f"refused a connection of uid {uid}, {len(self._connections)} clients")
            sock.close()
            return
        connection = Connection(sock, self._table)
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _serve(self, connection: Connection, mask: int) -> None:
        """One readiness event of one client; whatever goes wrong ends that client only."""
        self._is_checked = False
        try:
            if mask & selectors.EVENT_READ:
                connection.read()
            connection.write()
        except MoectlError as error:
            connection.refuse(error)
            self._drop(connection, error.message)
            return
        except OSError as error:
            self._drop(connection, "" if isinstance(error, ConnectionResetError) else str(error))
            return
        except Exception:  # the loop's top: our bug in one request must not cost a node its memory
            self._log.line(f"bug while serving a request: {traceback.format_exc(limit=-3)}")
            self._drop(connection, "its request met a bug")
            return
        connection.set_deadline(time.monotonic())
        wanted = selectors.EVENT_WRITE if connection.has_output else selectors.EVENT_READ
        self._selector.modify(connection.sock, wanted, connection)

    def _drop(self, connection: Connection, why: str) -> None:
        self._selector.unregister(connection.sock)
        del self._connections[connection.sock.fileno()]
        connection.sock.close()
        pages = self._table.end(connection.session)
        self._is_checked = False
        if why or pages:
            name = connection.session.name or "a client without a name"
            self._log.line(f"dropped {name}: {why or 'stopping'}; {pages} reserved pages are free")

    def _drop_stalled(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.deadline is not None and now > connection.deadline:
                self._drop(connection, "it stalled in the middle of a message")

    def _check_when_idle(self) -> None:
        if self._is_checked:
            return
        self._is_checked = True
        try:
            self._table.check()
        except InvariantError as error:  # say so and serve on: workers live from these pages
            self._log.line(f"INVARIANT BROKEN: {error}")

    def _listen_again(self) -> None:
        if self._listen_after is not None and time.monotonic() >= self._listen_after:
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._listen_after = None

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True


class LimitedLog:
    """Lines on stderr, at most so many a second, so that a hostile client cannot fill the disk."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0

    def line(self, text: str) -> None:
        """Write one line, unless this second has had its share."""
        second = int(time.monotonic())
        self._lines = self._lines + 1 if second == self._second else 1
        self._second = second
        if self._lines <= LOG_LINES_PER_S_MAX:
            print(f"hmm: {text[:500]}", file=sys.stderr, flush=True)


def parse_devices(text: str) -> list[tuple[str, int, int]]:
    """(id, hbm bytes, page bytes) of each device in the command line's JSON. Raises UsageError."""
    try:
        return [
            (str(entry["id"]), int(entry["hbm_bytes"]), int(entry["page_bytes"]))
            for entry in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--devices is not a list of id, hbm_bytes, page_bytes: {error!r}"
        ) from error


def _raise_descriptor_limit() -> None:
    """Channels hold a descriptor per pair of ranks: use all that the system allows this user."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say_ready(fd: int) -> None:
    with contextlib.suppress(OSError):  # whoever started us may be gone: that is no reason to end
        os.write(fd, b"ready\n")
        os.close(fd)


def main(argv: Sequence[str] | None = None) -> int:
    """Create the devices, serve, clean up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="moectl hmm", description="The node's HBM manager.")
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--node", required=True)
    parser.add_argument("--devices", required=True)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args(argv)
    try:
        _raise_descriptor_limit()
        table = Table(options.node, HostBackend())
        for device_id, hbm_bytes, page_bytes in parse_devices(options.devices):
            table.add_device(device_id, hbm_bytes, page_bytes)
        with listening(options.socket) as listener:
            server = Server(listener, table, os.getuid())
            server.watch_signals()
            if options.ready_fd is not None:
                _say_ready(options.ready_fd)
            server.run()
    except MoectlError as error:
        print(f"hmm: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
