"""How do a rank that leaves and one that stays talk while requests move? Frames and raw blocks.

One TCP connection per pair, asked and answered in turn by the leaving side; the frames are those of
`frames.py`, and after a "copy" between nodes the blocks follow as they lie in memory, straight out
of one KV window and into the other. Addresses are told in the transition's TCPStore. Every wait has
a deadline; a peer that dies ends the connection.

    hello secret device operation_id      -> blocks lanes queue data_address
    hold  items [[id, count]]             -> full [id]        blocks are held there, in all `count`
    copy  items [[id, start, [block]]]    -> lost [id]        KV of these blocks goes to those held
    drop  ids                                                 what is held for them is free again
    adopt id submit computed                                  read, not acted on before "go"
    go                                    -> refused [[id, why]]    all others run there now
"""

import contextlib
import hmac
import json
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ...core.errors import ExchangeBrokenError, ProtocolError, WorkerError
from ...core.plan import DeviceId
from .frames import FRAME_BYTES_MAX, encode
from .kv import KvPool

#: One answer takes two steps of a busy rank and a copy of at most a few MiB.
ANSWER_S = 10.0
CONNECT_S = 5.0
#: The store answers in milliseconds or is gone; requests can be replayed without it.
MEET_S = 5.0
_LENGTH = struct.Struct(">I")

Run = tuple[int, int]  # first block, how many


class MoveSocket:
    """One end of a connection; used by one thread, closed by any."""

    def __init__(self, sock: socket.socket, deadline_s: float = ANSWER_S) -> None:
        self._sock = sock
        sock.settimeout(deadline_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def connect(cls, address: str, bind_address: str) -> "MoveSocket":
        """Connect to HOST:PORT. Raises WorkerError when nobody listens."""
        host, _, port = address.rpartition(":")
        try:
            return cls(socket.create_connection((host, int(port)), CONNECT_S, (bind_address, 0)))
        except OSError as error:
            raise WorkerError(f"no rank takes requests at {address}: {error}") from error

    def set_deadline(self, deadline_s: float) -> None:
        """How long a wait may last from now on."""
        self._sock.settimeout(deadline_s)

    def send(self, message: dict[str, Any]) -> None:
        """One frame. Raises ExchangeBrokenError when the peer is gone or does not read."""
        with _broken():
            self._sock.sendall(encode(message))

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """A frame and the answer to it; raises WorkerError when the answer is a no."""
        self.send(message)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next frame of the peer, which must not be an error."""
        reply = self.receive()
        if reply.get("ok") is not True:
            raise WorkerError(f"a rank refuses moved requests: {str(reply.get('error'))[:200]}")
        return reply

    def receive(self) -> dict[str, Any]:
        """One frame. Raises ExchangeBrokenError at the end, ProtocolError on nonsense."""
        head = bytearray(_LENGTH.size)
        self._read_into(memoryview(head))
        (length,) = _LENGTH.unpack(head)
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(f"a frame of {length} B, at most {FRAME_BYTES_MAX} are allowed")
        body = bytearray(length)
        self._read_into(memoryview(body))
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a frame that is not JSON: {error!r:.100}") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"a frame that is a {type(message).__name__}, not an object")
        return message

    def send_blocks(self, kv: KvPool, blocks: Sequence[int]) -> None:
        """The bytes of blocks, in this order."""
        with _broken():
            for first, count in runs_of(blocks):
                self._sock.sendall(_bytes(kv.bytes_of(first, count).cpu()))

    def receive_blocks(self, kv: KvPool, blocks: Sequence[int]) -> None:
        """The bytes of as many blocks, into these."""
        for first, count in runs_of(blocks):
            place = kv.bytes_of(first, count)
            staged = place if place.device.type == "cpu" else torch.empty_like(place, device="cpu")
            self._read_into(_bytes(staged))
            if staged is not place:
                place.copy_(staged)

    def skip(self, byte_count: int) -> None:
        """Read bytes that nobody wants."""
        scratch = memoryview(bytearray(min(byte_count, 1 << 20)))
        while byte_count > 0:
            self._read_into(scratch[: min(byte_count, len(scratch))])
            byte_count -= len(scratch)

    def close(self) -> None:
        """End the connection; a thread that waits on it gets an error."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read_into(self, view: memoryview) -> None:
        with _broken():
            while view:
                count = self._sock.recv_into(view)
                if not count:
                    raise ConnectionError("the other rank ended the connection")
                view = view[count:]


def runs_of(blocks: Iterable[int]) -> Iterator[Run]:
    """Neighbours among blocks that come one after another: they are copied in one go."""
    first, count = -1, 0
    for block in blocks:
        if count and block == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = block, 1
    if count:
        yield first, count


def _bytes(flat: torch.Tensor) -> memoryview:
    """A host tensor of uint8 as sockets take it."""
    array: Any = flat.numpy()
    return memoryview(array)


def read_secret(path: str) -> str:
    """The fleet's secret. Raises WorkerError."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise WorkerError(f"the fleet's secret cannot be read: {error}") from error


def is_secret(told: Any, secret: str) -> bool:
    """Whether a peer knows it."""
    return isinstance(told, str) and hmac.compare_digest(told.encode(), secret.encode())


class Meeting:
    """Who listens where, in the TCPStore of one transition."""

    def __init__(self, store_address: str, operation_id: str) -> None:
        host, _, port = store_address.rpartition(":")
        with _broken():
            self._store = distributed.PrefixStore(
                f"{operation_id}/moves",
                distributed.TCPStore(
                    host, int(port), is_master=False, timeout=timedelta(seconds=MEET_S)
                ),
            )

    def publish(self, device: DeviceId, address: str) -> None:
        """This device takes requests at HOST:PORT."""
        with _broken():
            self._store.set(str(device), address)

    def find(self, device: DeviceId, wait_s: float) -> str | None:
        """Where a device takes requests; None when it has not said so in time."""
        with _broken():
            try:
                self._store.wait([str(device)], timedelta(seconds=wait_s))
            except distributed.DistStoreError:
                return None
            return bytes(self._store.get(str(device))).decode()


class _broken(contextlib.AbstractContextManager[None]):
    """Turn what sockets and torch's store raise into an ExchangeBrokenError."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | RuntimeError | ValueError):
            raise ExchangeBrokenError(f"moving requests: {error}") from error
