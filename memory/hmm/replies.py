"""Which error does an HMM's reply mean?

The HMM names its error's class; this file turns the name back into the class, from a closed list,
so that a reply can never make a client build anything else. Unknown names become MemoryPoolError.
"""

from typing import Any, NoReturn

from ...core.errors import (
    InvariantError,
    MappingError,
    MemoryPoolError,
    PoolExhaustedError,
    ProtocolError,
)

_PLAIN = {kind.__name__: kind for kind in (MemoryPoolError, MappingError, ProtocolError)}


def raise_error(error: Any) -> NoReturn:
    """Raise what the HMM raised."""
    fields = error if isinstance(error, dict) else {}
    kind, message = str(fields.get("type", "")), str(fields.get("message", "the HMM refused"))
    if kind == PoolExhaustedError.__name__:
        raise PoolExhaustedError(
            str(fields.get("device", "")),
            int(fields.get("needed", 0)),
            int(fields.get("free", 0)),
            {str(owner): int(pages) for owner, pages in dict(fields.get("holders", {})).items()},
        )
    if kind == InvariantError.__name__:
        raise InvariantError(message)
    raise _PLAIN.get(kind, MemoryPoolError)(message, next_step=str(fields.get("next_step", "")))
