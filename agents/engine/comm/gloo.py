"""How do ranks on different nodes exchange bytes? Pairs of gloo sends and receives, without a default
group.

A `GlooGroup` is a ProcessGroupGloo on a prefix of a TCPStore, so that every epoch has its own.
`GlooExchange` is an Exchange over some or all peers of it. Pairs are taken instead of a collective
because a receive may be longer than what is sent (so nothing is padded on the wire), because a pair
that has nothing to say costs no message, and because they were as fast: 2+2 ranks, see
docs/benchmarks.

gloo has no abort: a wait ends when its socket closes or its timeout passes. So a group remembers the
port that its device listens on, learns its peers' from the store, and `abort` shuts down the sockets
between those ports; waits here and at the peers end at once.

Wire, per peer: control = CONTROL_WORDS int64; part = 8 bytes length, then the bytes.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from ....core.errors import EngineError, ExchangeBrokenError
from .base import CONTROL_WORDS, DEADLINE_S, checked_words

_CONTROL_TAG, _PART_TAG = 1, 2
_PREFIX_BYTES = 8


@dataclass(frozen=True)
class Rendezvous:
    """Where and under which name a group meets. `store_address` is HOST:PORT of a TCPStore."""

    store_address: str
    name: str
    rank: int
    size: int
    bind_address: str  # this node's own address: sockets between nodes leave from it


class GlooGroup:
    """A ProcessGroupGloo of its own, whose sockets are known so that it can be aborted."""

    def __init__(self, meeting: Rendezvous, deadline_s: float = DEADLINE_S) -> None:
        self.rank, self.size = meeting.rank, meeting.size
        self._lock = threading.Lock()
        self._aborted = ""
        try:
            self._group: Any = self._form(meeting, timedelta(seconds=deadline_s))
        except RuntimeError as error:  # every failure of torch's store and gloo is one
            raise ExchangeBrokenError(
                f"rank {meeting.rank} of {meeting.size} could not join group {meeting.name!r} at "
                f"{meeting.store_address}: {_first_line(error)}"
            ) from error

    def _form(self, meeting: Rendezvous, deadline: timedelta) -> Any:
        host, _, port = meeting.store_address.rpartition(":")
        store = distributed.PrefixStore(
            meeting.name,
            distributed.TCPStore(host, int(port), is_master=False, timeout=deadline),
        )
        before = _listening_ports(meeting.bind_address)
        kind = distributed.ProcessGroupGloo
        options = kind._Options()
        options._devices = [kind.create_device(hostname=meeting.bind_address)]
        options._timeout = deadline
        options._threads = 1
        self._port = min(_listening_ports(meeting.bind_address) - before, default=0)
        store.set(f"port/{meeting.rank}", str(self._port))
        group = kind(store, meeting.rank, meeting.size, options)
        self._peer_ports = {
            int(store.get(f"port/{peer}")) for peer in range(meeting.size) if peer != meeting.rank
        }
        return group

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Any:
        """Start a send; the tensor must not change until the work is waited for."""
        return self._start("send", tensor, peer, tag)

    def receive(self, tensor: torch.Tensor, peer: int, tag: int) -> Any:
        """Start a receive into a tensor at least as long as what is sent."""
        return self._start("recv", tensor, peer, tag)

    def wait(self, work: Any, what: str, deadline_s: float | None = None) -> None:
        """Wait for a work of this group; ExchangeBrokenError says which one failed."""
        try:
            if deadline_s is None:
                work.wait()
            else:
                work.wait(timedelta(seconds=deadline_s))
        except RuntimeError as error:
            reason = self._aborted or f"{what}: {_first_line(error)}"
            self.abort(reason)
            raise ExchangeBrokenError(f"rank {self.rank} of {self.size}: {reason}") from error

    def abort(self, reason: str) -> None:
        """Shut the group's sockets down: waits here and at the peers end."""
        with self._lock:
            if self._aborted:
                return
            self._aborted = reason or "aborted"
            for pair in _connections(self._port, self._peer_ports):
                with contextlib.suppress(OSError), pair:
                    pair.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Drop the group: its sockets and its thread end with it."""
        with self._lock:
            self._aborted = self._aborted or "closed"
            self._group = None

    def _start(self, verb: str, tensor: torch.Tensor, peer: int, tag: int) -> Any:
        group = self._group
        if self._aborted or group is None:
            raise ExchangeBrokenError(f"rank {self.rank} of {self.size}: {self._aborted}")
        try:
            return getattr(group, verb)([tensor], peer, tag)
        except RuntimeError as error:
            self.abort(f"{verb} with rank {peer}: {_first_line(error)}")
            raise ExchangeBrokenError(
                f"rank {self.rank} of {self.size}: {self._aborted}"
            ) from error


class GlooExchange:
    """An Exchange over a GlooGroup; `peers` limits it to some ranks (the others are left alone)."""

    def __init__(
        self, group: GlooGroup, peers: Sequence[int] | None = None, deadline_s: float = DEADLINE_S
    ) -> None:
        self.rank, self.size = group.rank, group.size
        self._group = group
        self._deadline_s = deadline_s
        everyone = range(group.size) if peers is None else peers
        self._peers = [peer for peer in everyone if peer != group.rank]
        self._until = 0.0
        self._sends: list[Any] = []
        self._receives: list[tuple[int, Any, torch.Tensor]] = []

    def gather_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """See Exchange.gather_control; ranks that are no peers come back empty."""
        self.post_control(mine)
        return self.collect_control(mine, deadline_s)

    def post_control(self, mine: Sequence[int]) -> None:
        """The first half of `gather_control`."""
        words = torch.tensor(checked_words(mine), dtype=torch.int64)
        for peer in self._peers:
            self._receive(peer, torch.empty(CONTROL_WORDS, dtype=torch.int64), _CONTROL_TAG)
        for peer in self._peers:
            self._send(peer, words, _CONTROL_TAG)

    def collect_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """The second half of `gather_control`."""
        words: list[tuple[int, ...]] = [()] * self.size
        words[self.rank] = tuple(mine)
        for peer, tensor in self._finish(deadline_s):
            words[peer] = tuple(tensor.tolist())
        return words

    def all_to_all(
        self, parts: Sequence[torch.Tensor], bytes_in_max: Sequence[int]
    ) -> list[torch.Tensor]:
        """See Exchange.all_to_all."""
        self.post(parts, bytes_in_max)
        return self.collect(parts)

    def post(self, parts: Sequence[torch.Tensor], bytes_in_max: Sequence[int]) -> None:
        """The first half of `all_to_all`: start every send and receive, wait for nobody."""
        for peer in self._peers:
            if bytes_in_max[peer]:
                size = _PREFIX_BYTES + bytes_in_max[peer]
                self._receive(peer, torch.empty(size, dtype=torch.uint8), _PART_TAG)
        for peer in self._peers:
            if parts[peer].numel():
                self._send(peer, _framed(parts[peer]), _PART_TAG)

    def collect(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The second half of `all_to_all`: wait for every message."""
        received = [torch.empty(0, dtype=torch.uint8)] * self.size
        received[self.rank] = parts[self.rank]
        for peer, tensor in self._finish(None):
            count = int(tensor[:_PREFIX_BYTES].view(torch.int64).item())
            if not 0 <= count <= tensor.numel() - _PREFIX_BYTES:
                raise EngineError(f"rank {peer} announced {count} B, at most {tensor.numel() - 8}")
            received[peer] = tensor[_PREFIX_BYTES : _PREFIX_BYTES + count]
        return received

    def doorbells(self) -> Sequence[int]:
        """See Exchange.doorbells: gloo has none."""
        return ()

    def abort(self, reason: str) -> None:
        """See Exchange.abort."""
        self._group.abort(reason)

    def close(self) -> None:
        """See Exchange.close."""
        self._sends.clear()
        self._receives.clear()
        self._group.close()

    def _send(self, peer: int, tensor: torch.Tensor, tag: int) -> None:
        # The tensor is kept beside the work: gloo reads it until the send is done.
        self._sends.append((self._group.send(tensor, peer, tag), tensor))

    def _receive(self, peer: int, tensor: torch.Tensor, tag: int) -> None:
        self._receives.append((peer, self._group.receive(tensor, peer, tag), tensor))

    def _finish(self, deadline_s: float | None) -> list[tuple[int, torch.Tensor]]:
        until = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        receives, self._receives = self._receives, []
        sends, self._sends = self._sends, []
        for peer, work, _ in receives:
            self._group.wait(work, f"waiting for rank {peer}", max(until - time.monotonic(), 0.01))
        for work, _ in sends:
            self._group.wait(work, "sending", max(until - time.monotonic(), 0.01))
        return [(peer, tensor) for peer, _, tensor in receives]


def abandon_meeting(store_address: str) -> None:
    """End this process's waits for a group that is being formed: its store connections are shut."""
    host, _, port = store_address.rpartition(":")
    for each in _own_sockets():
        with contextlib.suppress(OSError), each:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                peer = each.getpeername()
                if peer[0].removeprefix("::ffff:") == host and peer[1] == int(port):
                    each.shutdown(socket.SHUT_RDWR)


def _framed(part: torch.Tensor) -> torch.Tensor:
    framed = torch.empty(_PREFIX_BYTES + part.numel(), dtype=torch.uint8)
    framed[:_PREFIX_BYTES].view(torch.int64)[0] = part.numel()
    framed[_PREFIX_BYTES:].copy_(part)
    return framed


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


def _own_sockets() -> list[socket.socket]:
    """A duplicate of every internet socket of this process; the caller closes them."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(socket.socket(fileno=os.dup(int(name))))
    return found


def _listening_ports(address: str) -> set[int]:
    ports = set()
    for each in _own_sockets():
        with contextlib.suppress(OSError), each:
            listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if each.family in (socket.AF_INET, socket.AF_INET6) and listens:
                host, port = each.getsockname()[:2]
                if host in (address, "0.0.0.0", "::"):  # noqa: S104 - read, not bound
                    ports.add(port)
    return ports


def _connections(own_port: int, peer_ports: set[int]) -> list[socket.socket]:
    """This process's sockets of the group that listens on these ports; the caller closes them."""
    found = []
    for each in _own_sockets():
        try:
            if each.family not in (socket.AF_INET, socket.AF_INET6):
                raise OSError("not ours")
            peer_port = each.getpeername()[1]  # fails for the listener, which must stay: gloo
            # ends the process when its listener is shut down
            if each.getsockname()[1] == own_port or peer_port in peer_ports:
                found.append(each)
                continue
        except OSError:
            pass
        each.close()
    return found
