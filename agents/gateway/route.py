"""Which worker gets a request? Pure: candidates in, one of them (or none) out.

Only a worker that serves is chosen; one that leaves, is parked or not yet committed is not. A
worker whose record vanished (its agent is being restarted) but whose connection lives is the last
resort. A worker that has seen the prompt's beginning is preferred, the longest beginning first, as
long as it is not much busier than the idlest. Otherwise the least loaded wins, and ties go to the
lowest device, so the choice is repeatable.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ...core.transitions import WorkerState

SLACK = 4  # requests more than the idlest that a known beginning is worth
SLACK_SHARE = 0.5  # and this share of the idlest's load


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
    matched: int = 0  # chunks of the prompt's beginning that it has seen


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
    usable = [candidate for candidate in usable if candidate.is_listed] or usable
    if not usable:
        return None
    idlest = min(candidate.load for candidate in usable)
    bound = idlest + SLACK + SLACK_SHARE * idlest
    knowing = [each for each in usable if each.matched and each.load <= bound]
    if knowing:
        return min(knowing, key=lambda c: (-c.matched, c.load, -c.epoch, c.device))
    return min(usable, key=lambda c: (c.load, -c.epoch, c.device))
