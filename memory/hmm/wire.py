"""What do the bytes between the HMM and its clients look like?

    frame = length (4 bytes, big-endian, of what follows) | version (1 byte) | JSON object (UTF-8)

A reply that carries descriptors says how many in `"fds"`; they follow as messages of one byte each
with up to FDS_PER_MESSAGE descriptors (SCM_RIGHTS). JSON, never pickle: reading it executes
nothing.

Everything a peer sends is checked before it is believed: the length as soon as its four bytes are
there, then the version, then the text. What is wrong becomes a ProtocolError, which ends that
connection and no other. Standard library only.
"""

import json
import struct
from typing import Any

from ...core.errors import ProtocolError

VERSION = 1
FRAME_BYTES_MAX = 16 * 1024 * 1024  # a layout of 100,000 tensors is about 10 MiB
GREETING_BYTES_MAX = 4096  # before a client has said hello it may not make us hold more
FDS_PER_MESSAGE = 250  # the kernel's limit is 253
HEADER = struct.Struct(">I")


def pack(message: dict[str, Any]) -> bytes:
    """One frame. Raises ProtocolError when the message is larger than a frame may be."""
    body = json.dumps(message, separators=(",", ":")).encode()
    length = len(body) + 1
    if length > FRAME_BYTES_MAX:
        raise ProtocolError(f"a message of {length} bytes, at most {FRAME_BYTES_MAX} are allowed")
    return HEADER.pack(length) + bytes([VERSION]) + body


def unpack(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The message in a frame's body (version byte and JSON). Raises ProtocolError."""
    if not len(body):
        raise ProtocolError("an empty frame: no version byte")
    if body[0] != VERSION:
        raise ProtocolError(
            f"protocol version {body[0]}, this side speaks {VERSION}",
            next_step="run the same moectl version in every process of the node",
        )
    try:
        message = json.loads(bytes(body[1:]))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame that is not JSON: {error!r:.100}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a frame that is a {type(message).__name__}, not an object")
    return message


def checked_length(header: bytes | bytearray, limit: int) -> int:
    """The body's length from a frame's first four bytes. Raises ProtocolError above `limit`."""
    (length,) = HEADER.unpack(header)
    if not 1 <= length <= limit:
        raise ProtocolError(f"a frame of {length} bytes, between 1 and {limit} are allowed")
    return int(length)


class FrameReader:
    """Cuts a byte stream into messages, holding at most one frame of `limit` bytes and one read."""

    def __init__(self, limit: int = FRAME_BYTES_MAX) -> None:
        self.limit = limit
        self._buffer = bytearray()

    @property
    def is_mid_message(self) -> bool:
        """Whether part of a frame has arrived."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append what a socket returned."""
        self._buffer += data

    def rest(self) -> bytes:
        """What has been fed and not been cut off yet."""
        return bytes(self._buffer)

    def next(self) -> dict[str, Any] | None:
        """The next whole message, or None. A ProtocolError ends the stream: it is beyond repair."""
        if len(self._buffer) < HEADER.size:
            return None
        length = checked_length(self._buffer[: HEADER.size], self.limit)
        if len(self._buffer) < HEADER.size + length:
            return None
        body = self._buffer[HEADER.size : HEADER.size + length]
        del self._buffer[: HEADER.size + length]
        return unpack(body)
