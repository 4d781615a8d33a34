"""How are messages framed on a worker's sockets? 4 bytes length, big-endian, then a JSON object.

Pure: bytes in, messages out; who reads and writes the socket is another file. A frame above the
limit, or one that is no JSON object, is a ProtocolError: the connection is closed, never guessed
at. Standard library only.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

from ...core.errors import ProtocolError

FRAME_BYTES_MAX = 16 * 1024 * 1024  # a prompt of two million ids; the contract of both ends
_LENGTH = struct.Struct(">I")


def encode(message: dict[str, Any]) -> bytes:
    """One frame; raises ProtocolError when it is above the limit."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a frame of {len(body)} B, at most {FRAME_BYTES_MAX} are allowed")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into messages; holds at most one frame and one read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Add what a socket returned and yield every whole message. Raises ProtocolError."""
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> dict[str, Any] | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(f"a frame of {length} B, at most {FRAME_BYTES_MAX} are allowed")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        try:
            message = json.loads(bytes(self._buffer[_LENGTH.size : end]))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a frame that is not JSON: {error!r:.100}") from error
        del self._buffer[:end]
        if not isinstance(message, dict):
            raise ProtocolError(f"a frame that is a {type(message).__name__}, not an object")
        return message
