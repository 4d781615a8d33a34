"""How does an HMM use pages that a holder process owns? As a `PageOwner` like any other.

The holder (`holder.py`) is started when the first device of its kind is created and nobody answers
at its path; after a kill or an upgrade of the HMM it is still there, with the same pages. Standard
library only: the driver is loaded in the holder.
"""

import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from ...core.errors import MappingError, MemoryPoolError, MoectlError, ProtocolError
from ...core.paths import short_socket_path
from ..backend import DeviceHandle, PageRun, Shares
from . import wire
from .holder import receive
from .replies import raise_error

ANSWER_S = 120.0  # creating the pages of a large device takes seconds
START_S = 60.0  # the first load of a driver


class HeldPages:
    """The owner's half of a driver's devices, in a process of its own."""

    def __init__(self, kind: str, path: Path) -> None:
        self._kind, self._path = kind, path
        self._sock: socket.socket | None = None
        self.identity = ""  # of the holder: another one has other pages

    def known(self, device_id: str) -> DeviceHandle | None:
        """A device as a predecessor created it; None when there is no holder or no such device."""
        try:
            self._sock = self._sock or self._connect()
        except OSError:
            return None
        return self._handle(device_id, self._call({"op": "known", "device": device_id}))

    def create(self, device_id: str, hbm_bytes: int, page_bytes: int) -> DeviceHandle:
        """Create all pages of a device; raises like the back end itself."""
        sizes = {"hbm_bytes": hbm_bytes, "page_bytes": page_bytes}
        made = self._handle(device_id, self._call({"op": "create", "device": device_id, **sizes}))
        if made is None:
            raise MemoryPoolError(f"device {device_id}: its pages were not created")
        return made

    def trim(self, handle: DeviceHandle, run: PageRun) -> int:
        """Nothing: creating a page again would cost a hundred times what mapping it does."""
        return 0

    def share(self, handle: DeviceHandle, run: PageRun, process: int) -> Shares:
        """What `process` needs to map these pages."""
        request = {"op": "share", "device": handle.device_id, "first": run.first}
        reply = self._call({**request, "count": run.count, "process": process})
        fds: list[int] = []
        try:
            while len(fds) < int(reply["fds"]):
                mark, received, _, _ = socket.recv_fds(self._sock_(), 1, wire.FDS_PER_MESSAGE)
                fds += received
                if mark != b"F" or not received:
                    raise MemoryPoolError("the holder's descriptors did not arrive")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return Shares(tuple(fds), tuple(int(value) for value in reply["values"]))

    def destroy(self, handle: DeviceHandle) -> None:
        """Give a device up; the holder ends with its last one."""
        try:
            self._call({"op": "destroy", "device": handle.device_id})
        except MoectlError:  # it is gone, and the pages with it
            return

    # Parts.

    def _handle(self, device_id: str, reply: dict[str, Any]) -> DeviceHandle | None:
        self.identity = str(reply["identity"])
        if reply["device"] is None:
            return None
        page_bytes, count, page_kind = reply["device"]
        sizes = int(page_bytes), int(count)
        return DeviceHandle(device_id, -1, *sizes, str(page_kind), self._kind)

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            sock = self._sock_()
            sock.sendall(wire.pack(request))
            reply = receive(sock)
        except (OSError, ProtocolError) as error:
            self._sock = None
            raise MemoryPoolError(
                f"the process that holds the pages of {self._kind} devices is lost: {error}",
                next_step="workers serve on from what they have mapped; restart the node's agent",
            ) from error
        if not reply.get("ok"):
            raise_error(reply.get("error"))
        return reply

    def _sock_(self) -> socket.socket:
        if self._sock is None:
            try:
                self._sock = self._connect()
            except OSError:
                self._start()
                self._sock = self._connect()
        return self._sock

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_S)
        try:
            with short_socket_path(self._path) as name:
                sock.connect(name)
        except OSError:
            sock.close()
            raise
        return sock

    def _start(self) -> None:
        """Start a holder that outlives this process; raises MappingError with its own word."""
        import subprocess

        ready, said = os.pipe()
        words = ["moectl.memory.hmm.holder", str(self._path), self._kind, str(said)]
        subprocess.Popen(
            [sys.executable, "-P", "-m", *words],
            stdin=subprocess.DEVNULL,
            pass_fds=[said],
            start_new_session=True,
        )
        os.close(said)
        with os.fdopen(ready, "rb") as pipe:
            is_told = bool(select.select([pipe], [], [], START_S)[0])
            word = pipe.readline().decode(errors="replace").strip() if is_told else "no answer"
        if word != "ready":
            raise MappingError(
                f"no pages of {self._kind} devices can be held: {word or 'it ended at once'}",
                next_step="read the HMM's log",
            )
