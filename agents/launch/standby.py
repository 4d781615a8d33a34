"""Why need nobody wait for a fork? Some workers are forked ahead, and wait for their orders.

Copying the page tables of a process with all the imports, and the first write to each page that it
shares, take some thirty milliseconds a worker, on cores that serve. A standby has done that before
anybody asks, and has gone once through the code that every worker goes through; it holds no memory
of a device and no connection. Orders come over a socket pair: whoever reads its end instead ends
too, so that no standby outlives its server.

They are forked when the server has had nothing to do for a while, never in the middle of a change.
Standard library only, one thread.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...core.priority import put_session
from .orders import WorkerLaunch

#: Chosen: what a scale of a small node adds at a time; more are forked when asked for, as ever.
STANDBYS = 2
#: A change of width is over by then, or has forked what it needs.
REST_S = 5.0
#: A standby reads its orders at once.
ORDERS_S = 2.0
READY = b"r"


@dataclass(frozen=True, slots=True)
class _Standby:
    pid: int
    sock: socket.socket
    knows: frozenset[str]  # folders of the templates that it was forked with


class Standbys:
    """The server's end of its standbys."""

    def __init__(self, count: int = STANDBYS, rest_s: float = REST_S) -> None:
        self._count, self._rest_s = count, rest_s
        self._waiting: list[_Standby] = []
        self._due_at = time.monotonic() + rest_s  # a spare that takes over is needed at once

    @property
    def pids(self) -> tuple[int, ...]:
        """Who waits."""
        return tuple(standby.pid for standby in self._waiting)

    @property
    def own_socks(self) -> tuple[socket.socket, ...]:
        """What every other child must close: a standby waits for the last holder's end."""
        return tuple(standby.sock for standby in self._waiting)

    def rest(self) -> None:
        """Something was asked of the server: fork nothing ahead for a while."""
        self._due_at = time.monotonic() + self._rest_s

    def wait_s(self, templates: Iterable[str]) -> float | None:
        """Seconds until one is to be forked; None when there are enough, or no model is known.

        One that lacks a template is of no use any more, and ends.
        """
        known = frozenset(templates)
        for standby in [each for each in self._waiting if not known <= each.knows]:
            self._end(standby)
        if not known or len(self._waiting) >= self._count:
            return None
        return max(0.0, self._due_at - time.monotonic())

    def fork(self, templates: Iterable[str], settle: Callable[[], None]) -> socket.socket | None:
        """Fork one; in the new process its end of the pair, after `settle`. None in the server."""
        mine, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:  # no memory or processes left: workers are forked when they are needed
            mine.close()
            theirs.close()
            self.rest()
            return None
        if pid:
            theirs.close()
            mine.settimeout(ORDERS_S)
            self._waiting.append(_Standby(pid, mine, frozenset(templates)))
            return None
        mine.close()
        settle()
        return theirs

    def send(self, launch: WorkerLaunch) -> int | None:
        """Give orders to one that is ready and knows the model; its pid, or None without one.

        One that does not take them is ended, and the next asked.
        """
        for standby in list(self._waiting):
            if launch.model_folder not in standby.knows or not _is_ready(standby):
                continue
            self._waiting.remove(standby)
            with standby.sock:
                try:
                    standby.sock.sendall(json.dumps(launch.to_plain()).encode())
                    return standby.pid
                except OSError:
                    pass
            _reap(standby.pid)
        return None

    def dismiss(self) -> None:
        """Let all of them end; returns when they have."""
        for standby in list(self._waiting):
            self._end(standby)

    def look(self) -> None:
        """Forget those that have died."""
        for standby in list(self._waiting):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(standby.pid, os.WNOHANG) == (0, 0):
                    continue
            self._waiting.remove(standby)
            standby.sock.close()
            self.rest()  # what dies at once would die again

    def _end(self, standby: _Standby) -> None:
        self._waiting.remove(standby)
        standby.sock.close()
        _reap(standby.pid)


def await_orders(sock: socket.socket) -> WorkerLaunch | None:
    """In a standby: say that it is ready and wait; None when it is not needed any more."""
    with sock:
        try:
            sock.sendall(READY)
            text = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        except OSError:  # the server is gone
            return None
    return WorkerLaunch.from_json(text.decode()) if text else None


def _is_ready(standby: _Standby) -> bool:
    """Whether it has said so; to be asked once only, by who then gives it orders."""
    try:
        return standby.sock.recv(1, socket.MSG_DONTWAIT) == READY
    except OSError:
        return False


def _reap(pid: int) -> None:
    """End it: it holds nothing that could be left half done."""
    put_session(pid, 0)  # while it rehearses it has the lowest level, and would end as slowly
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
