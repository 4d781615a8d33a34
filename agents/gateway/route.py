"""Which worker gets a request? Pure: candidates in, one of them (or none) out.

Only a worker that serves is chosen; one that leaves, is parked or not yet committed is not. A
worker whose record vanished (its agent is being restarted) but whose connection lives is the last
resort. Among equals the least loaded wins, and ties go to the lowest device, so the choice is
repeatable.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ...core.transitions import WorkerState


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as routing sees it."""

    address: str  # "host:port" of its data socket
    device: str  # "node/device"
    state: WorkerState
    epoch: int
    is_listed: bool  # its record is in the store
    is_connected: bool
    load: int  # requests of this gateway on it


def choose(
    candidates: Iterable[Candidate], avoid: frozenset[str] = frozenset()
) -> Candidate | None:
    """The worker to send to, or None. `avoid` are addresses that just refused this request."""
    usable = [
        candidate
        for candidate in candidates
        if candidate.is_connected
        and candidate.state is WorkerState.SERVING
        and candidate.address not in avoid
    ]
    listed = [candidate for candidate in usable if candidate.is_listed]
    ranked = sorted(listed or usable, key=lambda c: (c.load, -c.epoch, c.device))
    return ranked[0] if ranked else None
