"""How does a worker start in milliseconds? By a fork of a process that has imported everything.

    python -m moectl.agents.launch.forkserver --socket PATH --ready-fd N

It imports torch and transformers, keeps a template (a model without weights) per model folder, and
forks on request. The rule that makes forking safe: this process has exactly one thread, checked
before every fork, else it refuses. So there is no store, no log thread, no tensor arithmetic here;
a TCPStore, which needs a thread, is hosted by a child of its own ("spawn_store").

Requests and replies are frames as the HMM's. Children live on when this process ends.

    {"op":"template","folder"} -> {}               {"op":"spawn","config":{WorkerLaunch}} -> {"pid"}
    {"op":"spawn_store","host"} -> {"pid","port"}  {"op":"ping"} -> {"pid","children","templates"}
    {"op":"spawn_server","socket","log"} -> {"pid"}: a fork server for a sibling, see `siblings.py`
    {"op":"stop"} -> {} and the end

Workers are forked ahead of their orders: see `standby.py`. A spare, forked from it, takes its place
when it is killed: see `spare.py`. When both are, a sibling
or a worker that serves forks another (`siblings.py`, `engine/founding.py`).
"""

import argparse
import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import EngineError, MemoryPoolError, MoectlError, ProtocolError
from ...core.priority import GENTLE_NICE, SessionPriority
from ...memory.hmm import wire
from ...memory.hmm.listener import Place, peer_uid, take_place
from .child import leave, name_process, write_to
from .group_store import host_store, is_readable
from .imports import EngineParts, import_engine, lasting
from .orders import WorkerLaunch
from .spare import Spare
from .standby import Standbys, await_orders

#: Templates kept at a time. Chosen: models of one node; one template is a few megabytes.
TEMPLATES_MAX = 16
#: A child that hosts a store must name its port in this time; binding takes milliseconds.
STORE_READY_S = 10.0
#: A process that dies lets go of its locks within milliseconds of its pipes.
PLACE_S, PLACE_RETRY_S = 1.0, 0.01
#: A spare that lived shorter is not replaced at once.
SPARE_S_MIN = 1.0


class ForkServer:
    """One selector, one thread, requests answered where they arrive."""

    def __init__(
        self,
        listener: socket.socket,
        engine: EngineParts,
        own_fds: Sequence[int] = (),
        spare: Spare | None = None,
        templates: dict[str, Any] | None = None,
        standbys: Standbys | None = None,
    ) -> None:
        self._listener = listener
        self._own_fds = tuple(own_fds)  # children close them: the lock must end with this process
        self._spare = spare
        self._standbys = standbys if standbys is not None else Standbys(0)
        self._engine = engine
        self._templates: dict[str, Any] = templates if templates is not None else {}
        self._children: dict[int, str] = {}
        self._readers: dict[socket.socket, wire.FrameReader] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._spare_knows: tuple[str, ...] = ()
        self._forked_at = -SPARE_S_MIN  # when the spare was
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)

    def serve(self) -> bool:
        """Answer until told to stop; True in a spare whose server has died: it is to serve now."""
        self._listen()
        while not self._stopping:
            if self._is_spare_outdated() and self._fork_spare():
                return True
            wait_s = self._standbys.wait_s(self._templates)
            for key, _ in self._selector.select(wait_s):
                self._turn(key.fileobj)
            if self._standbys.wait_s(self._templates) == 0.0:
                self._fork_standby()
        self._standbys.dismiss()
        if self._spare is not None:
            self._spare.dismiss()
        return False

    @property
    def templates(self) -> dict[str, Any]:
        """Models without weights, by folder."""
        return self._templates

    def _listen(self) -> None:
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def _is_spare_outdated(self) -> bool:
        """Whether there is no spare, or one that lacks a template."""
        if self._spare is None:
            return False
        is_missing = self._spare.is_gone() or self._spare.pid is None
        if is_missing and time.monotonic() - self._forked_at < SPARE_S_MIN:
            return False  # what dies at once would die again: wait for the next request
        return is_missing or self._spare_knows != tuple(self._templates)

    def _fork_spare(self) -> bool:
        """Fork a spare that knows what this process knows; True in it, when it is needed."""
        assert self._spare is not None
        self._spare_knows, self._forked_at = tuple(self._templates), time.monotonic()
        try:
            self._check_alone("its spare")
        except EngineError as error:
            print(f"fork server: {error}", file=sys.stderr, flush=True)
            return False
        return self._spare.fork(self._become_spare)

    def _fork_standby(self) -> None:
        """Fork a worker ahead; it never returns from here."""
        try:
            self._check_alone("a standby")
        except EngineError:
            self._standbys.rest()
            return
        sock = self._standbys.fork(self._templates, self._become_child)
        if sock is not None:
            name_process("moe standby")
            leave(lambda: self._stand_by(sock), None)

    def _stand_by(self, sock: socket.socket) -> int:
        """The life of a standby: everything that needs no orders, then what they say."""
        session = SessionPriority()
        session.lower()
        for template in self._templates.values():
            self._engine.rehearse(template)
        session.restore()
        launch = await_orders(sock)
        if launch is None:
            return 0
        name_process(f"moe {launch.model}.{launch.device}")
        write_to(Path(launch.log_path))
        return self._engine.run_worker(launch, self._templates[launch.model_folder])

    def _become_spare(self) -> None:
        self._become_child()
        name_process("moe spare")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _turn(self, ready: Any) -> None:
        if ready is self._woken:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
            self._reap()
        elif ready is self._listener:
            self._accept()
        else:
            try:
                self._read(ready)
            except (MoectlError, OSError) as error:
                self._drop(ready, str(error))

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it is gone already
            return
        if peer_uid(client) not in (os.getuid(), 0):
            client.close()
            return
        client.settimeout(5.0)  # a client that does not read its reply is dropped
        self._readers[client] = wire.FrameReader()
        self._selector.register(client, selectors.EVENT_READ)

    def _read(self, client: socket.socket) -> None:
        data = client.recv(1 << 16)
        if not data:
            self._drop(client, "")
            return
        reader = self._readers[client]
        reader.feed(data)
        while (request := reader.next()) is not None:
            client.sendall(wire.pack(self._answer(request)))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("op") != "ping":
            self._standbys.rest()
        try:
            return {"ok": True, **self._operate(request)}
        except (MoectlError, OSError) as error:
            return {"ok": False, "error": str(error), "type": type(error).__name__}

    def _operate(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "ping":
                self._reap()
                children = {str(pid): what for pid, what in self._children.items()}
                spare = self._spare.pid if self._spare is not None else None
                templates = [*self._templates]
                return {
                    "pid": os.getpid(),
                    "children": children,
                    "templates": templates,
                    "spare": spare,
                    "standbys": self._standbys.pids,
                }
            case "template":
                self._template(str(request.get("folder")))
                return {}
            case "spawn":
                launch = WorkerLaunch.from_plain(request.get("config"))
                return {"pid": self._spawn(launch)}
            case "spawn_server":
                path, log = (Path(str(request.get(name))) for name in ("socket", "log"))
                return {"pid": self._spawn_server(path, log)}
            case "spawn_store":
                return self._spawn_store(str(request.get("host")))
            case "stop":
                self._stopping = True
                return {}
            case other:
                raise ProtocolError(f"unknown operation {str(other)[:40]!r}")

    def _template(self, folder: str) -> Any:
        if folder not in self._templates:
            if len(self._templates) >= TEMPLATES_MAX:
                self._templates.pop(next(iter(self._templates)))
            with lasting():
                self._templates[folder] = self._engine.build_template(Path(folder))
        return self._templates[folder]

    def _spawn(self, launch: WorkerLaunch) -> int:
        what = f"worker {launch.model} {launch.node}/{launch.device}"
        standby = self._standbys.send(launch)
        if standby is not None:
            self._children[standby] = what
            return standby
        template = self._template(launch.model_folder)
        pid = self._fork(what)
        if pid == 0:
            name_process(f"moe {launch.model}.{launch.device}")
            leave(lambda: self._engine.run_worker(launch, template), Path(launch.log_path))
        return pid

    def _spawn_server(self, path: Path, log_path: Path) -> int:
        """A fork server for another node of this machine: what is imported here, it has."""
        pid = self._fork(f"fork server at {path}")
        if pid == 0:
            name_process("moe forkserver")
            templates = dict(self._templates)
            leave(lambda: _serve_at(path, self._engine, templates), log_path)
        return pid

    def _spawn_store(self, host: str) -> dict[str, Any]:
        with socket.create_server((host, 0)) as listener:  # bound to one address, never to all
            port = listener.getsockname()[1]
            read_fd, write_fd = os.pipe()
            pid = self._fork("store")
            if pid == 0:
                os.close(read_fd)
                name_process("moe store")
                leave(lambda: host_store(listener, host, port, write_fd), None)
            os.close(write_fd)
        with os.fdopen(read_fd, "rb") as pipe:
            if not is_readable(pipe.fileno(), STORE_READY_S) or pipe.read(1) != b"r":
                os.kill(pid, signal.SIGKILL)
                raise EngineError(f"the store at {host} did not come up")
        return {"pid": pid, "port": port}

    def _fork(self, what: str) -> int:
        """fork, with the child cleaned of everything that is this process's."""
        self._check_alone(what)
        pid = os.fork()
        if pid:
            self._children[pid] = what
            return pid
        self._become_child()
        return 0

    def _become_child(self) -> None:
        """Let go of everything that is the server's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        socks = (self._listener, self._woken, self._wake, *self._readers)
        for each in (*socks, *self._standbys.own_socks):
            each.close()
        spares = self._spare.own_fds if self._spare is not None else ()
        for fd in (*self._own_fds, *spares):
            os.close(fd)

    def _check_alone(self, what: str) -> None:
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise EngineError(
                f"the fork server has {threads} threads; forking {what} now could hang it",
                next_step="end the fork server (its workers live on); its agent starts another",
            )

    def _reap(self) -> None:
        self._standbys.look()
        for pid in list(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            del self._children[pid]

    def _drop(self, client: socket.socket, why: str) -> None:
        if why:
            print(f"fork server: dropped a client: {why}", file=sys.stderr, flush=True)
        self._readers.pop(client, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client)
        client.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Import, listen, serve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="moectl forkserver", description="Forks workers.")
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args(argv)
    try:
        return _serve_at(options.socket, import_engine(), {}, options.ready_fd)
    except MoectlError as error:
        print(f"fork server: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def serve_forked(path: Path, log_path: Path) -> None:
    """Serve in a process that was forked from a worker and has let go of its things."""
    name_process("moe forkserver")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    leave(lambda: _serve_at(path, import_engine(), {}), log_path)


def _serve_at(
    path: Path,
    engine: EngineParts,
    templates: dict[str, Any],
    ready_fd: int | None = None,
) -> int:
    """Serve at a path until told to stop, in this process and in each spare that takes over."""
    while True:
        place = _take_place(path)
        if ready_fd is not None:
            with contextlib.suppress(OSError):  # whoever started us may be gone
                os.write(ready_fd, b"ready\n")
                os.close(ready_fd)
            ready_fd = None
        SessionPriority().lower(GENTLE_NICE)  # children lead sessions of their own
        own = (place.lock,)
        server = ForkServer(place.listener, engine, own, Spare(path), templates, Standbys())
        if not server.serve():
            place.close()
            return 0
        # From here on this process is the spare: the server that it was forked from is dead.
        templates = server.templates
        name_process("moe forkserver")


def _take_place(path: Path) -> Place:
    """Listen at the path; the locks of a process that is just dying may last a moment longer."""
    until = time.monotonic() + PLACE_S
    while True:
        try:
            return take_place(path)
        except MemoryPoolError:
            if time.monotonic() >= until:
                raise
            time.sleep(PLACE_RETRY_S)


if __name__ == "__main__":
    sys.exit(main())
