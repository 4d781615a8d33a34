"""Who gives free pages their memory before anyone needs them? A child of the HMM, at idle priority.

The first write to a page of the host is a hundred times dearer than mapping it. The HMM itself
never touches a page, so that a full machine cannot kill it; this process does, on order, one piece
at a time, and is the first to go when memory runs out. It runs only when a core has nothing else to
do, and ends with the HMM.

    order    {"page_bytes", "page_count", "page_kind", "runs": [[first, count], ..], "room": bytes}
             with the device's descriptor: touch up to `room` bytes of these free pages; without
             `room`: turn those that have memory into 2 MiB pages of the OS
    answer   {"touched": bytes, "next": page or -1, "short": bool, "error": text,
              "huge": [[first, count], ..], "refused": pages}

Touching is MADV_POPULATE_WRITE: it changes no byte, so a page that somebody reserves and fills at
the same moment keeps what he writes; and where there is no memory it fails, without a signal.
`next` is where to go on, `short` says that the machine has no memory to spare. `huge` names the
pages that are made of 2 MiB pages of the OS now: changing mappings is next to free with those. A
page of the device that is no multiple of 2 MiB would share one with a neighbour: it stays as it is.
Standard library only.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import MoectlError
from ...core.priority import SessionPriority, be_idle
from ..backend import DeviceHandle, PageRun, coalesce
from ..host import HUGE_PAGE_BYTES, HostBackend, can_gather
from ..machine import spare_bytes

SLICE_BYTES = 2 << 20  # one call: some milliseconds, then memory is looked at again
_PR_SET_PDEATHSIG = 1
_ORDER_BYTES_MAX = 1 << 20


class Toucher:
    """Works off one order."""

    def __init__(self, handle: DeviceHandle, backend: HostBackend) -> None:
        self._handle, self._backend = handle, backend
        self._huge: list[int] = []  # pages
        self._refused = 0

    def touch(self, runs: Sequence[PageRun], room: int) -> dict[str, Any]:
        """Touch pages of `runs` that have no memory, until `room` bytes are done."""
        left, page = room // self._handle.page_bytes, self._handle.page_bytes
        for run in runs:
            for fresh in self._backend.untouched(self._handle, run):
                for piece in _sliced(fresh, max(1, SLICE_BYTES // page)):
                    part = PageRun(piece.first, min(piece.count, left))
                    is_short = spare_bytes() < part.count * page
                    if not part.count or is_short:
                        return self._answer(room // page - left, piece.first, is_short)
                    self._populate(part)
                    left -= part.count
                    if part.count < piece.count:
                        return self._answer(room // page, part.first + part.count, False)
        return self._answer(room // page - left, -1, False)

    def gather(self, runs: Sequence[PageRun]) -> dict[str, Any]:
        """Turn pages of `runs` that have memory into 2 MiB pages of the OS; others stay without.

        The kernel needs 2 MiB for a moment, and gives as much back.
        """
        for run in runs:
            for page in range(run.first, run.first + run.count):
                if self._backend.untouched(self._handle, PageRun(page, 1)):
                    continue
                if spare_bytes() < HUGE_PAGE_BYTES:
                    return self._answer(0, page, True)
                self._populate(PageRun(page, 1))
        return self._answer(0, -1, False)

    def _populate(self, piece: PageRun) -> None:
        size = piece.count * self._handle.page_bytes
        address = self._backend.reserve(size)
        try:
            self._backend.map(address, self._handle, piece, writable=True)
            if not can_gather(self._handle):
                self._backend.populate(address, size)
            elif self._backend.populate_huge(address, size) == size:
                self._huge += range(piece.first, piece.first + piece.count)
            else:
                self._refused += piece.count
        finally:
            self._backend.release(address, size)

    def _answer(self, pages: int, at: int, is_short: bool) -> dict[str, Any]:
        touched = pages * self._handle.page_bytes
        huge = [[run.first, run.count] for run in coalesce(self._huge)]
        more = {"huge": huge, "refused": self._refused}
        return {"touched": touched, "next": at, "short": is_short, **more}


def serve(sock: socket.socket) -> None:
    """Answer orders until the HMM is gone."""
    backend = HostBackend()
    while True:
        text, fds, _, _ = socket.recv_fds(sock, _ORDER_BYTES_MAX, 1)
        if not text:
            return
        try:
            answer = _answer(json.loads(text), fds[0], backend)
        except (MoectlError, OSError) as error:
            answer = {"touched": 0, "next": -1, "error": str(error)[:300]}
        finally:
            for fd in fds:
                os.close(fd)
        sock.send(json.dumps(answer).encode())


def _answer(order: dict[str, Any], fd: int, backend: HostBackend) -> dict[str, Any]:
    sizes = int(order["page_bytes"]), int(order["page_count"])
    handle = DeviceHandle("", fd, *sizes, str(order["page_kind"]))
    runs = [PageRun(int(first), int(count)) for first, count in order["runs"]]
    toucher = Toucher(handle, backend)
    return toucher.touch(runs, int(order["room"])) if "room" in order else toucher.gather(runs)


def _sliced(run: PageRun, pages: int) -> list[PageRun]:
    end = run.first + run.count
    return [PageRun(at, min(pages, end - at)) for at in range(run.first, end, pages)]


def _take_the_back_seat(parent: int) -> None:
    """Behind everybody, first to be ended when memory is out, and gone when the HMM is."""
    with contextlib.suppress(OSError):
        os.setsid()  # idle priority counts inside a session, and the HMM's has nobody else in it
    be_idle()
    SessionPriority().lower()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C is the HMM's to handle
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """`python -m moectl.memory.hmm.toucher FD PARENT`: a socket of whole messages, and who asks."""
    _take_the_back_seat(int(sys.argv[2]))
    with socket.socket(fileno=int(sys.argv[1])) as sock, contextlib.suppress(ConnectionError):
        serve(sock)


if __name__ == "__main__":
    main()
