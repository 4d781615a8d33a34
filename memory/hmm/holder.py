"""Who owns a driver's pages while HMMs come, go and are killed? A process that does only this.

    python -m moectl.memory.hmm.holder PATH KIND READY_FD

CUDA and Ascend make one handle a page, and their rules bind a handle to the process that made it:
an import cannot be exported again, and on Ascend only the exporter may let another process in. So
handles cannot be handed on. They stay here instead, from the beginning: an HMM, its successor and
the one after a kill all ask the same holder to create pages and to share them. It keeps no table of
who has what; the journal says that.

Requests come over a Unix socket in the node's private directory, one at a time, as frames of
`wire`: create, known, share, destroy, end. It ends when told to, or when no HMM has been there for
HOLD_S. The driver is loaded here, never in the HMM.
"""

import contextlib
import os
import secrets
import selectors
import socket
import sys
from pathlib import Path
from typing import Any

from ...core.errors import MoectlError, ProtocolError
from ..backend import Backend, DeviceHandle, PageRun
from ..backends import backend_of
from . import wire
from .listener import listening, peer_uid
from .requests import count_of, error_body, text_of

HOLD_S = 600.0  # an agent starts a new HMM within seconds; a machine may swap meanwhile
MESSAGE_S = 5.0


class Holder:
    """Devices of one kind, by id."""

    def __init__(self, kind: str) -> None:
        self._backend: Backend = backend_of(kind)
        self._devices: dict[str, DeviceHandle] = {}
        self.identity = secrets.token_hex(8)  # a new one means that all pages are new
        self.is_over = False

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Do what an HMM asks; the descriptors are to be closed once they are sent."""
        operation, name = str(request.get("op")), str(request.get("device", ""))
        if operation == "create":
            self._destroy(name)  # an HMM that creates it anew has given up what was there
            sizes = count_of(request, "hbm_bytes"), count_of(request, "page_bytes")
            self._devices[name] = self._backend.create(text_of(request, "device"), *sizes)
        if operation in ("create", "known"):
            return {"device": self._facts(name), "identity": self.identity}, ()
        if operation == "share":
            run = PageRun(count_of(request, "first"), count_of(request, "count"))
            given = self._backend.share(self._held(name), run, count_of(request, "process"))
            return {"values": list(given.values)}, given.fds
        if operation in ("destroy", "end"):
            self._destroy(name)
            self.is_over = operation == "end" or not self._devices
            return {}, ()
        raise ProtocolError(f"a holder of pages does not know {operation[:40]!r}")

    def close(self) -> None:
        """Give all pages up; memory that others have mapped lives on with them."""
        for name in list(self._devices):
            self._destroy(name)

    def _held(self, name: str) -> DeviceHandle:
        if name not in self._devices:
            raise ProtocolError(f"no device {name[:40]!r} is held here")
        return self._devices[name]

    def _facts(self, name: str) -> list[Any] | None:
        held = self._devices.get(name)
        return None if held is None else [held.page_bytes, held.page_count, held.page_kind]

    def _destroy(self, name: str) -> None:
        held = self._devices.pop(name, None)
        if held is not None:
            self._backend.destroy(held)


def serve(holder: Holder, listener: socket.socket) -> None:
    """Answer whoever connects until it is over."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        clients: set[socket.socket] = set()
        while not holder.is_over:
            ready = selector.select(None if clients else HOLD_S)
            if not ready and not clients:
                return
            for key, _ in ready:
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is listener:
                    client, _ = listener.accept()
                    if peer_uid(client) not in (os.getuid(), 0):
                        client.close()
                        continue
                    client.settimeout(MESSAGE_S)
                    clients.add(client)
                    selector.register(client, selectors.EVENT_READ)
                elif not _serve_one(holder, sock):
                    selector.unregister(sock)
                    clients.discard(sock)
                    sock.close()


def _serve_one(holder: Holder, sock: socket.socket) -> bool:
    """One request of one HMM; False when it is gone or speaks nonsense."""
    try:
        request = receive(sock)
    except (OSError, ProtocolError):
        return False
    fds: tuple[int, ...] = ()
    try:
        body, fds = holder.answer(request)
        reply = {"ok": True, "fds": len(fds), **body}
    except MoectlError as error:
        reply = {"ok": False, "error": error_body(error)}
    try:
        sock.sendall(wire.pack(reply))
        for at in range(0, len(fds), wire.FDS_PER_MESSAGE):
            socket.send_fds(sock, [b"F"], fds[at : at + wire.FDS_PER_MESSAGE])
    except OSError:
        return False
    finally:
        for fd in fds:
            os.close(fd)
    return True


def receive(sock: socket.socket) -> dict[str, Any]:
    """One whole message. Raises OSError or ProtocolError."""
    length = wire.checked_length(_exactly(sock, wire.HEADER.size), wire.FRAME_BYTES_MAX)
    return wire.unpack(_exactly(sock, length))


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the other end is gone")
        data += piece
    return bytes(data)


def main() -> int:
    """Hold pages until it is over; returns the exit code."""
    path, kind, ready_fd = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    try:
        holder = Holder(kind)
        with listening(path) as listener:
            with contextlib.suppress(OSError):
                os.write(ready_fd, b"ready\n")
            os.close(ready_fd)
            serve(holder, listener)
            holder.close()
    except MoectlError as error:
        with contextlib.suppress(OSError):
            os.write(ready_fd, f"{error.message}\n".encode())
        print(f"hmm holder: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
