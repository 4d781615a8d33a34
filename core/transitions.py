"""State tables: which moves are legal, with the reason for every edge. Data, checked at use."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from .errors import InvariantError
from .plan import Phase

S = TypeVar("S", bound=StrEnum)


class WorkerState(StrEnum):
    """The life of a worker, as its agent reports it."""

    STARTING = "starting"  # forked, attaching weights, joining its group
    PREPARED = "prepared"  # in the group of the next epoch, waiting for COMMIT
    SERVING = "serving"
    PARKED = "parked"  # its group broke: holds its requests and waits for the next epoch
    LEAVING = "leaving"  # serves its requests, takes no new ones
    STOPPED = "stopped"
    LOST = "lost"  # died without being asked to


PHASE_MOVES: Mapping[Phase, frozenset[Phase]] = {
    # All acks are in -> COMMIT; one refusal, a deadline or a cancel -> FORFEIT.
    Phase.PREPARE: frozenset({Phase.COMMIT, Phase.FORFEIT}),
    # The decision is made: there is no way back, only forward.
    Phase.COMMIT: frozenset({Phase.RETIRE}),
    # Old pages and processes are gone.
    Phase.RETIRE: frozenset({Phase.DONE}),
    Phase.DONE: frozenset(),
    # What PREPARE reserved has been given back.
    Phase.FORFEIT: frozenset({Phase.FORFEITED}),
    Phase.FORFEITED: frozenset(),
}

WORKER_MOVES: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.PREPARED, WorkerState.STOPPED, WorkerState.LOST}),
    WorkerState.PREPARED: frozenset({WorkerState.SERVING, WorkerState.STOPPED, WorkerState.LOST}),
    WorkerState.SERVING: frozenset(
        {WorkerState.PARKED, WorkerState.LEAVING, WorkerState.STOPPED, WorkerState.LOST}
    ),
    # A heal commits: the survivors go on where they were.
    WorkerState.PARKED: frozenset(
        {WorkerState.SERVING, WorkerState.LEAVING, WorkerState.STOPPED, WorkerState.LOST}
    ),
    # A forfeit takes a leaving worker back into service.
    WorkerState.LEAVING: frozenset(
        {WorkerState.SERVING, WorkerState.PARKED, WorkerState.STOPPED, WorkerState.LOST}
    ),
    WorkerState.STOPPED: frozenset(),
    WorkerState.LOST: frozenset(),
}

TERMINAL_PHASES = frozenset(phase for phase, moves in PHASE_MOVES.items() if not moves)


def checked_move(table: Mapping[S, frozenset[S]], old: S, new: S) -> S:
    """Return `new` if the table allows old -> new, or nothing changes; else InvariantError."""
    if new != old and new not in table[old]:
        allowed = ", ".join(sorted(table[old])) or "nothing (terminal)"
        raise InvariantError(
            f"{type(old).__name__}: {old} -> {new} is not legal; allowed: {allowed}"
        )
    return new
