"""Does a model serve while its ranks go from one epoch to the next?

Pure. Between COMMIT and the last flip the placement says e + 1 and workers still report e. That is
no trouble and not unknown: the ranks of e take requests until the step at which they flip.
"""

from dataclasses import dataclass

from ..core.plan import Phase, Placement
from ..core.records import TransitionRecord, WorkerRecord
from ..core.transitions import WorkerState
from .health import AT_WORK
from .observe import Snapshot


@dataclass(frozen=True, slots=True)
class Flip:
    """A commit that not every rank has reported yet."""

    serves: bool
    reason: str  # word of the Ready condition
    message: str
    epoch: int  # the one before


def under_way(
    placement: Placement | None, transition: TransitionRecord | None, snapshot: Snapshot
) -> Flip | None:
    """The flip that runs now; None when none does, or when its outcome is in doubt."""
    if placement is None or transition is None or transition.old is None:
        return None
    old, new = transition.old, transition.new
    if transition.phase not in (Phase.COMMIT, Phase.RETIRE) or new.epoch != placement.epoch:
        return None
    if transition.reason:  # it went on without an answer: nobody knows who flipped
        return None
    workers = snapshot.workers.get(placement.model, {})
    before = dict(zip(old.ranks, old.instances, strict=True))
    states = [
        _state(workers.get(device), instance, (old.epoch, new.epoch))
        for device, instance in zip(new.ranks, new.instances, strict=True)
        # A rank that joins has answered PREPARE; its record may still be on its way.
        if before.get(device) == instance
    ]
    if any(state is None for state in states):
        return None
    if WorkerState.PARKED in states:
        message = f"ranks of epoch {old.epoch} wait for epoch {new.epoch}"
        return Flip(False, "WorkerParked", message, old.epoch)
    if not states:
        return None
    message = f"epoch {old.epoch} serves until every rank is in epoch {new.epoch}"
    return Flip(True, "Flipping", message, old.epoch)


def _state(
    worker: WorkerRecord | None, instance: int, epochs: tuple[int, int]
) -> WorkerState | None:
    """What a rank that stays is known to do; None when that is not known."""
    if worker is None or worker.instance != instance or worker.epoch not in epochs:
        return None
    return worker.state if worker.state in (*AT_WORK, WorkerState.PARKED) else None


def effective(placement: Placement | None, flip: Flip | None, snapshot: Snapshot) -> int:
    """Ranks that serve the committed epoch; while it flips, those of the one before as well."""
    if placement is None:
        return 0
    epochs = {placement.epoch} | ({flip.epoch} if flip is not None and flip.serves else set())
    workers = snapshot.workers.get(placement.model, {})
    return sum(
        device in workers and workers[device].epoch in epochs and workers[device].state in AT_WORK
        for device in placement.ranks
    )
