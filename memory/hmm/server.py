"""How does one small process own a node's memory and outlive everything that uses it?

    python -m moectl.memory.hmm.server --socket PATH --node NAME --devices JSON --ready-fd N

JSON is a list of {"id", "hbm_bytes", "page_bytes", "kind"}. The word "ready" is written to
descriptor N, which is then closed, once clients can connect and no device's memory is awaited.

Three ends. SIGTERM or SIGINT with nobody left who maps pages: the socket and the journal go, and
the memory with them. With live clients: it serves on for HAND_OVER_S, so that a successor
(`--take-over`) can have everything, and leaves the journal if none comes. Killed outright: workers
serve on, and the next one rebuilds the table from the journal and from the descriptors that they
hand back.

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
from ...core.paths import ProcessId, process_id
from ...core.priority import GENTLE_NICE, SessionPriority
from ..backend import PageOwner
from ..backends import backend_of
from . import handover
from .connection import Connection
from .holdings import DeviceSpec
from .listener import Place, peer_of, take_place
from .table import Session, Table

CLIENTS_MAX = 256  # workers, agents and tools of one node, with room
ACCEPTS_PER_TURN = 64  # then it is the turn of those who are connected
IDLE_CHECK_S = 1.0  # the pool's invariant is checked when nothing was asked for this long
LOG_LINES_PER_S_MAX = 20
HAND_OVER_S = 2.0  # an agent that ends a node waits 3 s before it kills


class Server:
    """The loop: accept, read, answer, write."""

    def __init__(self, place: Place, table: Table, own_uid: int, ready_fd: int | None) -> None:
        self._place = place
        self._listener = place.listener
        self._table = table
        self._ready_fd = ready_fd
        self._own_uid = own_uid
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, Connection] = {}
        self._log = LimitedLog()
        self._is_checked = True
        self._listen_after: float | None = None  # set while out of descriptors
        self._stop_asked = False
        self._stop_at: float | None = None
        self._is_handed_over = False
        self._touching: socket.socket | None = None  # where the child that touches pages answers
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)

    def watch_signals(self) -> None:
        """SIGTERM and SIGINT end `run`; to be called before anyone is told that we are ready."""
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self, inherited: Sequence[Connection] = ()) -> None:
        """Serve until a signal or a successor ends it; then close every descriptor."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for connection in inherited:
            self._welcome(connection)
        while not self._is_over():
            self._turn()
        self._table.pretouch.close()
        if self._is_handed_over:  # everything lives on elsewhere: forget, touch nothing
            self._place.close(leave=True)
            return
        is_used = self._is_used()
        for connection in list(self._connections.values()):
            self._drop(connection, "")
        self._table.close(forget=not is_used)
        self._place.close()

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
            elif key.fileobj is self._touching:
                # `read` may close it, and its number may be another's within this very batch.
                self._selector.unregister(self._touching)
                self._touching = None
                line = self._table.pretouch.read(time.monotonic())
                if line:
                    self._log.line(line)
            else:
                self._serve(key.data, mask)
        self._drop_stalled()
        self._listen_again()
        for line in self._table.state.tick(time.monotonic()):
            self._log.line(line)
        self._tell_ready()
        self._touch_ahead()

    def _touch_ahead(self) -> None:
        """Give the child that touches free pages its next order, and listen for its answer."""
        pretouch = self._table.pretouch
        if not self._is_starting():
            pretouch.turn(time.monotonic())
        if pretouch.sock is not self._touching:
            if self._touching is not None:
                self._selector.unregister(self._touching)
            self._touching = pretouch.sock
            if self._touching is not None:
                self._selector.register(self._touching, selectors.EVENT_READ)

    def _is_starting(self) -> bool:
        """Whether somebody waits for us, or we for memory: then nothing else is begun."""
        return self._stop_asked or self._ready_fd is not None or bool(self._table.state.waiting)

    def _is_over(self) -> bool:
        """Whether to end: at once when nobody maps pages, else after the time for a successor."""
        if self._stop_asked and self._stop_at is None:
            self._stop_at = time.monotonic() + (HAND_OVER_S if self._is_used() else 0.0)
        is_late = self._stop_at is not None and time.monotonic() >= self._stop_at
        return self._is_handed_over or is_late or (self._stop_asked and not self._is_used())

    def _is_used(self) -> bool:
        return any(each.session.maps for each in self._connections.values())

    def _tell_ready(self) -> None:
        if self._ready_fd is not None and not self._table.state.waiting:
            _say_ready(self._ready_fd)
            self._ready_fd = None
            SessionPriority().lower(GENTLE_NICE)  # nobody waits for it while a token is made

    def _timeout_s(self) -> float | None:
        if self._is_starting():
            return 0.05
        waits = [self._table.pretouch.wait_s(time.monotonic())]
        if self._table.state.deadline is not None:
            waits.append(IDLE_CHECK_S)
        if any(connection.deadline is not None for connection in self._connections.values()):
            waits.append(IDLE_CHECK_S)
        if not self._is_checked or self._listen_after is not None:
            waits.append(IDLE_CHECK_S)
        return min((wait for wait in waits if wait is not None), default=None)

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
        pid, uid = peer_of(sock)
        if uid not in (self._own_uid, 0) or len(self._connections) >= CLIENTS_MAX:
            self._log.line(f"refused a connection of uid {uid}, {len(self._connections)} clients")
            sock.close()
            return
        session = Session(process=process_id(pid) or ProcessId(pid, 0))
        self._welcome(Connection(sock, self._table, session))

    def _welcome(self, connection: Connection) -> None:
        self._connections[connection.sock.fileno()] = connection
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        if any(connection.pending):
            self._serve(connection, 0)

    def _serve(self, connection: Connection, mask: int) -> None:
        """One readiness event of one client; whatever goes wrong ends that client only."""
        self._is_checked = False
        try:
            if any(connection.pending):
                connection.go_on()
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
        if connection.session.takes_over:
            self._hand_over(connection)
            return
        connection.set_deadline(time.monotonic())
        wanted = selectors.EVENT_WRITE if connection.has_output else selectors.EVENT_READ
        self._selector.modify(connection.sock, wanted, connection)

    def _drop(self, connection: Connection, why: str) -> None:
        self._selector.unregister(connection.sock)
        del self._connections[connection.sock.fileno()]
        connection.close()
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

    def _hand_over(self, successor: Connection) -> None:
        others = [each for each in self._connections.values() if each is not successor]
        try:
            handover.give(self._table, self._place, successor.sock, others)
        except MoectlError as error:
            self._drop(successor, error.message)
            return
        self._is_handed_over = True
        self._log.line("everything is handed over")

    def _stop(self, number: int, frame: object) -> None:
        self._stop_asked = True


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


def parse_devices(text: str) -> list[DeviceSpec]:
    """The devices in the command line's JSON. Raises UsageError."""
    try:
        return [
            DeviceSpec(
                str(entry["id"]),
                int(entry["hbm_bytes"]),
                int(entry["page_bytes"]),
                str(entry.get("kind", "cpu")),
                int(entry.get("pretouch_bytes", 0)),
            )
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


def _owner(kind: str, path: Path) -> PageOwner:
    """Who has the pages of a kind: memory is ours, a driver's handles are a holder's."""
    if kind == "cpu":
        return backend_of(kind)
    from .held import HeldPages  # a host has none: its HMM starts the sooner

    return HeldPages(kind, Path(f"{path}.{kind}"))


def _serve(options: argparse.Namespace) -> None:
    _raise_descriptor_limit()
    specs, now = parse_devices(options.devices), time.monotonic()
    owners = {kind: _owner(kind, options.socket) for kind in {spec.kind for spec in specs}}
    journal = options.socket.with_name(options.socket.name + ".journal")
    table = Table(options.node, owners, journal)
    if options.take_over:
        inherited = handover.take(table, options.socket, now)
        table.state.begin_journal()
        place, connections = inherited.place, inherited.connections
    else:
        place, connections = take_place(options.socket), []
        try:
            table.open(specs, now)
        except MoectlError:
            place.close()
            raise
    server = Server(place, table, os.getuid(), options.ready_fd)
    server.watch_signals()
    server.run(connections)


def main(argv: Sequence[str] | None = None) -> int:
    """Create, recover or take over the devices, serve, clean up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="moectl hmm", description="The node's HBM manager.")
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--node", required=True)
    parser.add_argument("--devices", required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--take-over", action="store_true", help="from the one that serves now")
    options = parser.parse_args(argv)
    try:
        _serve(options)
    except MoectlError as error:
        print(f"hmm: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
