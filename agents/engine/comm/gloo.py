"""How do ranks on different nodes exchange bytes? By gloo, one all-to-all per call.

A `GlooGroup` is a ProcessGroupGloo on a prefix of a TCPStore, without a default group, so that
every epoch has its own. `GlooExchange` is an Exchange over some or all peers of it. One collective
with the sizes that both ends know beats pairs of sends and receives where cores are short, though
its parts are padded: gloo's own thread does the waiting, and the engine wakes once a call (2+2
ranks on 2 busy cores, 4 KiB parts, p50: 2.8 ms against 5.2 for pairs and 3.6 for pairs with
receives posted ahead; 1+1 ranks: 0.8 against 6.5 and 2.2).

gloo has no abort: a wait ends when its socket closes or its timeout passes. So a group remembers
the port that its device listens on, learns its peers' from the store, and `abort` shuts down the
sockets between those ports; waits here and at the peers end at once.

Most of them do. A call that finds its connection dead before gloo's own thread has seen the end is
queued behind it, and the queue is dropped without a word to whoever waits: gloo then keeps the call
until its timeout, which is the one of the meeting. So a wait here looks up now and then, at whether
the group was aborted or has lost a connection, and `close` does not wait for such a call.

Wire, per peer: 8 bytes of length and the bytes, padded to the size that was agreed.
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
from .base import DEADLINE_S, Bounds, checked_words

_PREFIX_BYTES = 8
_ALIGN_BYTES = 64  # parts stand side by side in one tensor and are read as wider numbers
#: How often a wait looks for itself whether it can still end well. Chosen: far above what a call
#: takes, so that it costs nothing, and far below what healing takes.
_LOOK_S = 0.2


@dataclass(frozen=True)
class Rendezvous:
    """Where and under which name a group meets. `store_address` is HOST:PORT of a TCPStore."""

    store_address: str
    name: str
    rank: int
    size: int
    bind_address: str  # this node's own address: sockets between nodes leave from it

    def open_store(self, deadline: timedelta) -> distributed.PrefixStore:
        """The meeting's own part of the store. RuntimeError when it cannot be reached."""
        host, _, port = self.store_address.rpartition(":")
        store = distributed.TCPStore(host, int(port), is_master=False, timeout=deadline)
        return distributed.PrefixStore(self.name, store)


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
        store = meeting.open_store(deadline)
        kind: Any = distributed.ProcessGroupGloo  # its options are not in torch's stubs
        options = kind._Options()
        before = _listening_ports(meeting.bind_address)
        options._devices = [kind.create_device(hostname=meeting.bind_address)]
        # More than one where something else began to listen meanwhile: a transfer of the same
        # transition, which ends with the group just as well.
        self._ports = _listening_ports(meeting.bind_address) - before
        options._timeout = deadline
        options._threads = 1
        store.set(f"ports/{meeting.rank}", " ".join(map(str, sorted(self._ports))))
        group = kind(store, meeting.rank, meeting.size, options)
        self._peer_ports = {
            int(port)
            for peer in range(meeting.size)
            if peer != meeting.rank
            for port in store.get(f"ports/{peer}").split()
        }
        self._pair_count = self._count_pairs()
        return group

    def all_to_all(
        self, send: torch.Tensor, out: list[int], receive: torch.Tensor, into: list[int]
    ) -> Any:
        """Start an all-to-all of bytes: out[r] of `send` go to rank r, into[r] come from it."""
        return self._start("alltoall_base", receive, send, into, out)

    def wait(self, work: Any, what: str, deadline_s: float) -> None:
        """Wait for a work of this group; ExchangeBrokenError says which one failed."""
        until = time.monotonic() + deadline_s
        is_over = False
        while not is_over:
            left_s = until - time.monotonic()
            is_over = left_s <= _LOOK_S
            with contextlib.suppress(RuntimeError):  # not yet; or it failed, and fails again below
                work.wait(_timeout(min(left_s, _LOOK_S)))
                return
            is_over = is_over or work.is_completed() or self._check_pairs()
        try:
            work.wait(_timeout(0.0))
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
            for pair in _connections(self._ports, self._peer_ports):
                with contextlib.suppress(OSError), pair:
                    pair.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Drop the group: its sockets and its thread end with it, as soon as gloo lets them."""
        with self._lock:
            self._aborted = self._aborted or "closed"
            if self._group is None:
                return
            last, self._group = [self._group], None
        # The end of a group waits for its calls, and gloo may have forgotten to end one.
        threading.Thread(target=last.clear, name="end of group", daemon=True).start()

    def _check_pairs(self) -> bool:
        """Whether the group is aborted; one that has lost a connection to a peer is from now on."""
        if not self._aborted and self._count_pairs() < self._pair_count:
            self.abort("the connection to a peer is gone")
        return bool(self._aborted)

    def _count_pairs(self) -> int:
        pairs = _connections(self._ports, self._peer_ports)
        for pair in pairs:
            pair.close()
        return min(len(pairs), self.size - 1)

    def _start(self, verb: str, *arguments: Any) -> Any:
        group = self._group
        if self._aborted or group is None:
            raise ExchangeBrokenError(f"rank {self.rank} of {self.size}: {self._aborted}")
        try:
            return getattr(group, verb)(*arguments)
        except RuntimeError as error:
            self.abort(f"{verb}: {_first_line(error)}")
            raise ExchangeBrokenError(
                f"rank {self.rank} of {self.size}: {self._aborted}"
            ) from error


class GlooExchange:
    """An Exchange over a GlooGroup; `peers` limits it to some ranks: the others get no bytes."""

    def __init__(
        self, group: GlooGroup, peers: Sequence[int] | None = None, deadline_s: float = DEADLINE_S
    ) -> None:
        self.rank, self.size = group.rank, group.size
        self._group = group
        self._deadline_s = deadline_s
        everyone = range(group.size) if peers is None else peers
        self._peers = frozenset(everyone) - {group.rank}
        self._pending: tuple[Any, torch.Tensor, list[int]] | None = None

    def gather_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """See Exchange.gather_control; ranks that are no peers come back empty."""
        self.post_control(mine)
        return self.collect_control(mine, deadline_s)

    def post_control(self, mine: Sequence[int]) -> None:
        """The first half of `gather_control`."""
        words = torch.tensor(checked_words(mine), dtype=torch.int64).view(torch.uint8)
        sizes = [words.numel()] * self.size
        self.post([words] * self.size, Bounds(sizes, sizes))

    def collect_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """The second half of `gather_control`."""
        received = self._collect(deadline_s)
        words = [tuple(part.view(torch.int64).tolist()) for part in received]
        words[self.rank] = tuple(mine)
        return words

    def all_to_all(self, parts: Sequence[torch.Tensor], bounds: Bounds) -> list[torch.Tensor]:
        """See Exchange.all_to_all."""
        self.post(parts, bounds)
        return self.collect(parts)

    def post(self, parts: Sequence[torch.Tensor], bounds: Bounds) -> None:
        """The first half of `all_to_all`: start it, wait for nobody."""
        outgoing, incoming = self._framed(bounds.out_max), self._framed(bounds.in_max)
        send = torch.empty(sum(outgoing), dtype=torch.uint8)
        start = 0
        for peer, room in enumerate(outgoing):
            if room:
                _frame(parts[peer], send[start : start + room])
            start += room
        receive = torch.empty(sum(incoming), dtype=torch.uint8)
        work = self._group.all_to_all(send, outgoing, receive, incoming)
        # Both tensors are kept until the work is done: gloo reads and writes them meanwhile.
        self._pending = (work, receive, incoming)

    def collect(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The second half of `all_to_all`: wait, and cut what came."""
        received = self._collect(None)
        received[self.rank] = parts[self.rank]
        return received

    def doorbells(self) -> Sequence[int]:
        """See Exchange.doorbells: gloo has none."""
        return ()

    def abort(self, reason: str) -> None:
        """See Exchange.abort."""
        self._group.abort(reason)

    def close(self) -> None:
        """See Exchange.close."""
        self._group.abort("closed")
        self._pending = None
        self._group.close()

    def _framed(self, sizes: Sequence[int]) -> list[int]:
        """Bytes on the wire per rank; a rank that is no peer, or expects nothing, gets none."""
        return [
            -(-(_PREFIX_BYTES + size) // _ALIGN_BYTES) * _ALIGN_BYTES
            if size and peer in self._peers
            else 0
            for peer, size in enumerate(sizes)
        ]

    def _collect(self, deadline_s: float | None) -> list[torch.Tensor]:
        assert self._pending is not None
        (work, receive, incoming), self._pending = self._pending, None
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        self._group.wait(work, f"waiting for ranks {sorted(self._peers)}", limit_s)
        return [_unframed(room) for room in receive.split(incoming)]


def _frame(part: torch.Tensor, room: torch.Tensor) -> None:
    count = part.numel()
    if count > room.numel() - _PREFIX_BYTES:
        raise EngineError(f"a part of {count} B, at most {room.numel() - _PREFIX_BYTES} agreed")
    room[:_PREFIX_BYTES].view(torch.int64)[0] = count
    room[_PREFIX_BYTES : _PREFIX_BYTES + count].copy_(part)


def _unframed(room: torch.Tensor) -> torch.Tensor:
    if not room.numel():
        return room
    count = int(room[:_PREFIX_BYTES].view(torch.int64).item())
    if not 0 <= count <= room.numel() - _PREFIX_BYTES:
        raise EngineError(f"a part of {count} B in {room.numel()} B")
    return room[_PREFIX_BYTES : _PREFIX_BYTES + count]


def abandon_meeting(store_address: str) -> None:
    """End this process's waits for a group that is being formed: its store connections are shut."""
    host, _, port = store_address.rpartition(":")
    for each in _own_sockets():
        with contextlib.suppress(OSError), each:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                peer = each.getpeername()
                if peer[0].removeprefix("::ffff:") == host and peer[1] == int(port):
                    each.shutdown(socket.SHUT_RDWR)


def _timeout(seconds: float) -> timedelta:
    """As gloo takes it: milliseconds, of which none mean for ever."""
    return timedelta(seconds=max(seconds, 0.001))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


def _own_sockets() -> list[socket.socket]:
    """A duplicate of every internet socket of this process; the caller closes them."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            copy = os.dup(int(name))
            try:
                found.append(socket.socket(fileno=copy))
            except OSError:  # the number means something else by now
                os.close(copy)
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


def _connections(own_ports: set[int], peer_ports: set[int]) -> list[socket.socket]:
    """This process's sockets of the group that listens on these ports; the caller closes them."""
    found = []
    for each in _own_sockets():
        try:
            if each.family not in (socket.AF_INET, socket.AF_INET6):
                raise OSError("not ours")
            peer_port = each.getpeername()[1]  # fails for the listener, which must stay: gloo
            # ends the process when its listener is shut down
            if each.getsockname()[1] in own_ports or peer_port in peer_ports:
                found.append(each)
                continue
        except OSError:
            pass
        each.close()
    return found
