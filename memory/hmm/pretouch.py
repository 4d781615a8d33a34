"""Which free pages get their memory ahead of need, and when does that stop?

The HMM's side: what to order next from the child that touches (`toucher.py`), and what came of it.
A device's HBM is fixed and its own, so by default all of its free pages are touched, once, lowest
first, as the pool hands them out; freed pages keep their memory anyway. A limit holds the pages
that are touched ahead to so many bytes, 0 switches it off, and `trim` does too: who gives memory
back to the machine does not want it taken again. When the machine has no memory to spare, nothing
is touched until it has.

Then the free pages that were in use before are turned into 2 MiB pages of the OS, as those touched
ahead are from the beginning (`HostBackend.populate_huge`). Pages in use are left alone: the one who
reads or writes there would wait. That rests while pages come and go: somebody is changing a fleet,
and pages that KV gives up for experts are free for an instant only.

Hugetlb pages were set aside when the device was made, and driver pages are created whole: there is
nothing to do for them. Standard library only; never blocks.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.priority import lift_thread, put_session
from ..backend import PageRun, coalesce, expand
from ..host import KIND_HUGETLB, can_gather, held_bytes
from .holdings import Device

if TYPE_CHECKING:  # 30 ms of a start that has 200: loaded at the first order
    import subprocess

PIECE_BYTES = 32 << 20  # one order: some 30 ms of an idle core
RUNS_MAX = 512  # of free pages in one order; the rest comes with the next
START_S = 1.0  # a node that starts has better things to do
SHORT_S = 10.0  # until the machine is asked again whether it has memory to spare
GATHER_REST_S = 3.0  # a change of width takes one or two
END_S = 1.0
ALL = -1  # no limit but the device's own size

FAILURES_MAX = 3  # of the child: then something is wrong that trying again does not mend
ANSWER_BYTES_MAX = 4096


@dataclass(slots=True)
class Progress:
    """How far one device is."""

    limit: int = 0  # bytes of free pages that are kept touched; ALL or 0 for none
    next: int = 0  # the page to go on from; -1 when all that may be touched is
    touched: int = 0  # bytes that were touched ahead since the HMM began
    is_short: bool = False
    error: str = ""
    free_seen: int = -1  # free pages at the last look: a limit is filled up again when they go
    huge: set[int] = field(default_factory=set)  # pages made of 2 MiB pages of the OS
    gather_next: int = 0  # the free page to go on from with those that are not
    gather_seen: int = -1  # free pages when all were gone through
    free_last: int = -1  # free pages at the last turn, and since when there are as many
    free_since: float = 0.0
    refusals: int = 0  # orders in a row by which no page became huge


class Pretouch:
    """Orders of all devices of a node, one at a time."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self._progress: dict[str, Progress] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._busy = ""  # the device of the order under way
        self._rest = -1  # the first free page that was not in that order; -1 when all were
        self._is_gather = False  # that order is about pages that have memory already
        self._at: float | None = None  # when the next order may be given
        self._failures = 0

    def set_limit(self, device_id: str, bytes: int) -> None:
        """Keep so many bytes of free pages touched ahead; ALL for all, 0 for none."""
        known = self._progress.setdefault(device_id, Progress())
        known.limit, known.next, known.error = bytes, 0, ""
        known.gather_next, known.gather_seen, known.refusals = 0, -1, 0

    def trimmed(self, device_id: str, runs: Sequence[PageRun]) -> None:
        """These free pages have no memory any more, and get none ahead from now on."""
        self.set_limit(device_id, 0)
        self._progress[device_id].huge.difference_update(expand(tuple(runs)))

    def limits(self) -> dict[str, int]:
        """device -> limit, for a successor."""
        return {name: known.limit for name, known in self._progress.items()}

    def told(self, device_id: str) -> dict[str, Any]:
        """What `usage` says of a device: pages with memory behind them, and what goes on."""
        known, device = self._progress.get(device_id, Progress()), self._devices[device_id]
        state = "done" if known.limit and _is_touchable(device) else "off"
        is_at_it = self._busy == device_id or self._is_wanting(device_id)
        if state == "done" and is_at_it:
            state = "short of memory" if known.is_short else "touching"
        body = {"touched": touched_pages(device), "pretouch": known.error or state}
        body |= {"pretouch_limit": known.limit, "touched_ahead_bytes": known.touched}
        return body | {"huge_bytes": len(known.huge) * device.handle.page_bytes}

    @property
    def sock(self) -> socket.socket | None:
        """The child's socket while an answer is awaited."""
        return self._sock if self._busy else None

    def wait_s(self, now: float) -> float | None:
        """Seconds until `turn` has something to do; None when it has nothing."""
        if self._busy or self._failures >= FAILURES_MAX:
            return None
        due = 0.0
        if not any(map(self._is_wanting, self._devices)):
            gathering = [name for name in self._devices if self._is_gathering(name)]
            if not gathering:
                return None
            due = min(self._rests_until(name, now) for name in gathering) - now
        return max(0.0, due, START_S if self._at is None else self._at - now)

    def turn(self, now: float) -> None:
        """Give the next order when it is time."""
        if self.wait_s(now) is None:
            return
        if self._at is None:
            self._at = now + START_S
        if now >= self._at:
            names = sorted(self._devices)
            wanting = [name for name in names if self._is_wanting(name)]
            if wanting:
                self._order(wanting[0], now)
                return
            gathering = filter(self._is_gathering, names)
            rested = [name for name in gathering if self._rests_until(name, now) <= now]
            if rested:
                self._order_gathering(rested[0], now)

    def read(self, now: float) -> str:
        """Take the child's answer; returns a line for the log, or nothing."""
        assert self._sock is not None
        try:
            text = self._sock.recv(ANSWER_BYTES_MAX)
        except OSError:
            text = b""
        device, self._busy = self._busy, ""
        known = self._progress.get(device)
        if not text or known is None or device not in self._devices:
            self.close()
            self._failures, self._at = self._failures + 1, now + SHORT_S
            return f"the process that touches pages ended ({self._failures})"
        is_over = self._note(known, json.loads(text))
        self._at = now + (SHORT_S if known.is_short else START_S if is_over else 0.0)
        return f"device {device}: no page is touched ahead: {known.error}" if known.error else ""

    def close(self) -> None:
        """End the child."""
        child, self._child, self._busy = self._child, None, ""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if child is not None:
            import subprocess

            lift_thread(child.pid)  # else it would end when a core is idle
            put_session(child.pid, 0)
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_S)

    # Parts.

    def _is_wanting(self, device_id: str) -> bool:
        known, device = self._progress.get(device_id), self._devices[device_id]
        if known is None or not known.limit or not _is_touchable(device):
            return False
        free = device.pool.free_count
        if not free or (known.next < 0 and free == known.free_seen):
            return False
        return self._room(device_id) >= device.handle.page_bytes

    def _is_gathering(self, device_id: str) -> bool:
        known, device = self._progress.get(device_id), self._devices[device_id]
        if known is None or not known.limit or not can_gather(device.handle):
            return False
        free = device.pool.free_count
        is_over = known.gather_next < 0 and free == known.gather_seen
        return bool(free) and not is_over and known.refusals < FAILURES_MAX

    def _rests_until(self, device_id: str, now: float) -> float:
        """When pages of a device will have stayed where they are for long enough."""
        known, free = self._progress[device_id], self._devices[device_id].pool.free_count
        if free != known.free_last:
            known.free_last, known.free_since = free, now
        return known.free_since + GATHER_REST_S

    def _room(self, device_id: str) -> int:
        """Bytes that the next order may touch."""
        known, device = self._progress[device_id], self._devices[device_id]
        fresh = device.handle.bytes - held_bytes(device.handle.fd)
        if known.limit == ALL:
            return min(PIECE_BYTES, fresh)
        ahead = max(0, device.pool.free_count * device.handle.page_bytes - fresh)
        return min(PIECE_BYTES, fresh, known.limit - ahead)

    def _order(self, device_id: str, now: float) -> None:
        known, device = self._progress[device_id], self._devices[device_id]
        start = max(known.next, 0)
        runs = [_from(run, start) for run in device.pool.free_runs()]
        ahead = [run for run in runs if run.count]
        known.free_seen = device.pool.free_count
        if not ahead:
            known.next = -1
            return
        self._rest = ahead[RUNS_MAX].first if len(ahead) > RUNS_MAX else -1
        self._is_gather = False
        self._send(device_id, ahead[:RUNS_MAX], {"room": self._room(device_id)}, now)

    def _order_gathering(self, device_id: str, now: float) -> None:
        known, device = self._progress[device_id], self._devices[device_id]
        start = max(known.gather_next, 0)
        if not start:
            known.gather_seen = device.pool.free_count
        pages = (page for run in device.pool.free_runs() for page in expand((_from(run, start),)))
        count = max(1, PIECE_BYTES // device.handle.page_bytes)
        piece = list(itertools.islice((page for page in pages if page not in known.huge), count))
        if not piece:
            known.gather_next = -1
            return
        self._rest, self._is_gather = piece[-1] + 1, True
        self._send(device_id, coalesce(piece), {}, now)

    def _send(
        self, device_id: str, runs: Sequence[PageRun], extra: dict[str, int], now: float
    ) -> None:
        handle = self._devices[device_id].handle
        order = {
            "page_bytes": handle.page_bytes,
            "page_count": handle.page_count,
            "page_kind": handle.page_kind,
            "runs": [[run.first, run.count] for run in runs],
            **extra,
        }
        try:
            socket.send_fds(self._begun(), [json.dumps(order).encode()], [handle.fd])
        except OSError:
            self.close()
            self._failures, self._at = self._failures + 1, now + SHORT_S
            return
        self._busy = device_id

    def _note(self, known: Progress, answer: dict[str, Any]) -> bool:
        """Take in what came of an order; returns whether there is no more to do of its kind."""
        huge = expand(tuple(PageRun(*map(int, run)) for run in answer.get("huge", ())))
        known.huge.update(huge)
        known.touched += int(answer["touched"])
        known.is_short = bool(answer.get("short"))
        known.error = str(answer.get("error", ""))
        if known.error:
            known.limit = 0
        at = int(answer["next"])
        at = self._rest if at < 0 else at
        if self._is_gather:
            known.gather_next = at
            is_refused = bool(answer.get("refused")) and not huge
            known.refusals = known.refusals + 1 if is_refused else 0
        else:
            known.next = at
        return at < 0

    def _begun(self) -> socket.socket:
        """The child's socket; starts it at the first order."""
        if self._sock is None:
            import subprocess

            self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._sock.settimeout(END_S)
            with theirs:
                words = ["moectl.memory.hmm.toucher", str(theirs.fileno()), str(os.getpid())]
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", *words],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
        return self._sock


def touched_pages(device: Device) -> int:
    """Pages with memory behind them, whoever touched them: all of them where that is the rule."""
    if device.handle.fd < 0 or device.handle.page_kind == KIND_HUGETLB:
        return device.handle.page_count
    return held_bytes(device.handle.fd) // device.handle.page_bytes


def _is_touchable(device: Device) -> bool:
    return device.handle.fd >= 0 and device.handle.page_kind != KIND_HUGETLB


def _from(run: PageRun, start: int) -> PageRun:
    first = max(run.first, min(start, run.first + run.count))
    return PageRun(first, run.first + run.count - first)
