"""How are messages framed on the sockets of a worker? 4 bytes length, big-endian, then JSON.

Pure framing over asyncio streams; what the messages mean stands in `control.py` and
`gateway/link.py`. A frame above the limit or one that is not a JSON object is a ProtocolError: the
connection is closed, never guessed at.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from ..core.errors import ProtocolError

FRAME_BYTES_MAX = 16 << 20  # the data protocol's limit on both ends
_LENGTH_BYTES = 4
NOTHING: Mapping[str, str] = {}


def encode(message: dict[str, Any], ready: Mapping[str, str] = NOTHING) -> bytes:
    """One frame; raises ProtocolError when it is above the limit.

    `ready` are fields that are JSON text already: what several workers are told is encoded once.
    """
    text = json.dumps(message, separators=(",", ":"))
    for name, value in ready.items():
        text = f"{text[:-1]},{json.dumps(name)}:{value}}}"
    payload = text.encode()
    if len(payload) > FRAME_BYTES_MAX:
        raise ProtocolError(f"frame of {len(payload)} bytes is above the limit {FRAME_BYTES_MAX}")
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


async def read_message(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next frame's object; raises ProtocolError, or IncompleteReadError at the end."""
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if length > FRAME_BYTES_MAX:
        raise ProtocolError(f"peer announced a frame of {length} bytes, limit {FRAME_BYTES_MAX}")
    try:
        message = json.loads(await reader.readexactly(length))
    except ValueError as error:
        raise ProtocolError(f"peer sent a frame that is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"peer sent a {type(message).__name__}, expected an object")
    return message
