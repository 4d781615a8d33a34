"""How do ranks on one node exchange bytes? Through shared memory and a doorbell for every pair.

Every rank writes only into its own region and reads its peers'. A region is a header and two
buffers that calls use in turn; call number k uses buffer k % 2:

    region of a rank:  | header 4 KiB                          | buffer 0      | buffer 1      |
    header (8 B each): | state | call | 2 x control words | 2 x ranks x (offset, bytes)       |

Two buffers are enough: a rank writes buffer k % 2 again in call k + 2, which it enters only after
it has every peer's signal of call k + 1, which a peer gives only once it is done with call k. For
the same reason what a call returned stays valid until the next call, and nothing is copied out.

An event descriptor only wakes: whether a peer has entered call k is read from its header, and only
after a system call (a full barrier), so that its data is visible too.
"""

import mmap
import os
import select
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import torch

from ....core.errors import EngineError, ExchangeBrokenError
from .base import CONTROL_WORDS, DEADLINE_S, Bounds, checked_words

HEADER_BYTES = 4096
_OPEN, _CLOSED = 0, 1
_STATE, _CALL, _CONTROL = 0, 1, 2
_TABLE = _CONTROL + 2 * CONTROL_WORDS
RANKS_MAX = (HEADER_BYTES // 8 - _TABLE) // 4


class Channel(Protocol):
    """What the HMM hands out for a node's group: one memory, and eventfds[i][j] waking j for i."""

    @property
    def memfd(self) -> int:
        """The memory: one region per rank."""
        ...

    @property
    def eventfds(self) -> Sequence[Sequence[int]]:
        """The doorbells."""
        ...


def region_bytes(payload_bytes_max: int) -> int:
    """Bytes of one rank's region when no call sends more than `payload_bytes_max` in all."""
    half = -(-payload_bytes_max // mmap.PAGESIZE) * mmap.PAGESIZE
    return HEADER_BYTES + 2 * half


class ShmExchange:
    """An Exchange over a Channel. One thread calls; `abort` may come from any thread."""

    def __init__(
        self,
        channel: Channel,
        rank: int,
        size: int,
        bytes_per_rank: int,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        if not 0 <= rank < size <= RANKS_MAX:
            raise EngineError(
                f"rank {rank} of {size}: a node's group has at most {RANKS_MAX} ranks"
            )
        self.rank, self.size = rank, size
        self._deadline_s = deadline_s
        self._channel = channel
        self._bytes_per_rank = bytes_per_rank
        self._half_bytes = (bytes_per_rank - HEADER_BYTES) // 2
        self._map = mmap.mmap(channel.memfd, size * bytes_per_rank)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        whole = memoryview(self._map)
        self._headers = [
            whole[r * bytes_per_rank : r * bytes_per_rank + HEADER_BYTES].cast("q")
            for r in range(size)
        ]
        self._peers = [(rank + step) % size for step in range(1, size)]
        self._call = 0
        self._broken = ""
        self._closed = False
        self._lock = threading.Lock()
        self._abort_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inbox = {peer: channel.eventfds[peer][rank] for peer in self._peers}
        self._outbox = [channel.eventfds[rank][peer] for peer in self._peers]
        self._pollers = {peer: self._poller(fd) for peer, fd in self._inbox.items()}

    def gather_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """See Exchange.gather_control."""
        parity = self._begin()
        first = _CONTROL + parity * CONTROL_WORDS
        for index, word in enumerate(checked_words(mine)):
            self._headers[self.rank][first + index] = word
        self.signal()
        self._wait_for_peers(deadline_s)
        return [tuple(header[first : first + CONTROL_WORDS]) for header in self._headers]

    def all_to_all(self, parts: Sequence[torch.Tensor], bounds: Bounds) -> list[torch.Tensor]:
        """See Exchange.all_to_all."""
        self._post(parts)
        return self._collect(parts, bounds.in_max)

    def _post(self, parts: Sequence[torch.Tensor]) -> None:
        parity = self._begin()
        needed = sum(part.numel() for part in parts) + 64 * self.size
        if needed > self._half_bytes:
            raise EngineError(f"an exchange of {needed} B, the channel holds {self._half_bytes} B")
        offset = self.rank * self._bytes_per_rank + HEADER_BYTES + parity * self._half_bytes
        header = self._headers[self.rank]
        for peer in self._peers:
            part = parts[peer]
            count = part.numel()
            if count:
                self._bytes[offset : offset + count].copy_(part)
            entry = self._entry(parity, peer)
            header[entry], header[entry + 1] = offset, count
            offset += -(-count // 64) * 64
        self.signal()

    def _collect(
        self, parts: Sequence[torch.Tensor], bytes_in_max: Sequence[int]
    ) -> list[torch.Tensor]:
        self._wait_for_peers(None)
        entry = self._entry(self._call % 2, self.rank)
        received = []
        for peer, header in enumerate(self._headers):
            if peer == self.rank:
                received.append(parts[peer])
                continue
            offset, count = header[entry], header[entry + 1]
            if count > bytes_in_max[peer]:
                raise EngineError(
                    f"rank {peer} sent {count} B, at most {bytes_in_max[peer]} agreed"
                )
            received.append(self._bytes[offset : offset + count])
        return received

    def doorbells(self) -> Sequence[int]:
        """See Exchange.doorbells."""
        return (*self._inbox.values(), self._abort_fd)

    def abort(self, reason: str) -> None:
        """See Exchange.abort."""
        with self._lock:
            if self._closed:
                return
            self._broken = self._broken or reason or "aborted"
            self._headers[self.rank][_STATE] = _CLOSED
            os.eventfd_write(self._abort_fd, 1)
            self._wake_peers()

    def close(self) -> None:
        """See Exchange.close. The mapping itself goes with the last view of it."""
        self.abort("closed")
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._abort_fd)
                self._pollers.clear()
                close = getattr(self._channel, "close", None)
                if close is not None:
                    close()

    def signal(self) -> None:
        """Publish this rank's call number and wake every peer."""
        self._headers[self.rank][_CALL] = self._call
        self._wake_peers()

    def _begin(self) -> int:
        self._check()
        self._call += 1
        return self._call % 2

    def _entry(self, parity: int, receiver: int) -> int:
        return _TABLE + 2 * (parity * self.size + receiver)

    def _poller(self, fd: int) -> select.poll:
        os.set_blocking(fd, False)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(self._abort_fd, select.POLLIN)
        return poller

    def _wake_peers(self) -> None:
        for fd in self._outbox:
            _wake(fd)

    def _wait_for_peers(self, deadline_s: float | None) -> None:
        until = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        # One peer after another: by the time the first has signalled, most others have too, so a
        # rank wakes about once a call instead of once a peer.
        for peer in self._peers:
            self._wait_for(peer, until)

    def _wait_for(self, peer: int, until: float) -> None:
        header, poller = self._headers[peer], self._pollers[peer]
        while True:
            _drain(self._inbox[peer])
            if header[_CALL] >= self._call:
                return
            if header[_STATE] == _CLOSED:
                self._break(f"rank {peer} left the group")
            left_ms = (until - time.monotonic()) * 1e3
            if left_ms <= 0:
                self._break(f"rank {peer} missed its deadline in call {self._call}")
            poller.poll(left_ms)
            self._check()

    def _break(self, reason: str) -> None:
        self.abort(reason)
        raise ExchangeBrokenError(f"rank {self.rank} of {self.size}: {reason}")

    def _check(self) -> None:
        if self._broken:
            raise ExchangeBrokenError(f"rank {self.rank} of {self.size}: {self._broken}")


def _wake(fd: int) -> None:
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:  # 2**64 - 2 wake-ups are unread: it is awake already
        return


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:  # nothing to read
        return
