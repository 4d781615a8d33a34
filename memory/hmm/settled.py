"""How does somebody who needs all of the HMM's answers to be whole connect to it?

An HMM that was started again knows neither layouts nor every device until workers have handed their
memory back, a moment later. Who asks in that moment would take what it does not know yet for gone.
"""

from pathlib import Path

from ...core.errors import MemoryPoolError
from .client import HmmClient


def settled_client(socket_path: str | Path, name: str, deadline_s: float = 5.0) -> HmmClient:
    """A connection to an HMM that knows all of its memory.

    Raises MemoryPoolError while it does not, or when nobody answers: ask again.
    """
    client = HmmClient(socket_path, name, deadline_s)
    if client.awaited:
        client.close()
        raise MemoryPoolError(
            f"the HMM at {socket_path} waits for the memory of {', '.join(client.awaited)}",
            next_step="ask again: it is settled within seconds",
        )
    return client
