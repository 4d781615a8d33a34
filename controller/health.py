"""Does a placed model serve as its placement says, and if not, what must be started again?

Pure. Looks at the workers' records with the eyes of the committed placement; used when no
transition runs. What is wrong decides how long to wait before healing: a death that an agent has
reported is certain, a silent node is not, because workers outlive their agent.
"""

from dataclasses import dataclass
from enum import StrEnum

from ..core.plan import DeviceId, Placement
from ..core.records import WorkerRecord
from ..core.transitions import WorkerState
from .config import Limits
from .observe import Snapshot

DEAD = (WorkerState.LOST, WorkerState.STOPPED)
AT_WORK = (WorkerState.SERVING, WorkerState.LEAVING)


class HealthReason(StrEnum):
    """The worst thing that is true of a model; reason words of its Ready condition."""

    SERVING = "Serving"
    WORKER_LOST = "WorkerLost"
    WORKER_PARKED = "WorkerParked"  # its group broke, nobody is known to be dead
    WORKER_MISSING = "WorkerMissing"  # the node is there and does not report it
    EPOCH_BEHIND = "EpochBehind"  # serves or waits in another epoch
    NODE_LOST = "NodeLost"


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong, what a heal has to start again, and how long to wait for better news."""

    reason: HealthReason
    message: str
    lost: frozenset[DeviceId] = frozenset()  # the node is gone, and its pages with it
    restarted: frozenset[DeviceId] = frozenset()  # the worker is gone, its pages are not
    grace_s: float = 0.0


def examine(placement: Placement, snapshot: Snapshot, limits: Limits) -> Health:
    """The health of a committed placement."""
    found: dict[HealthReason, list[DeviceId]] = {reason: [] for reason in HealthReason}
    workers = snapshot.workers.get(placement.model, {})
    for device, instance in zip(placement.ranks, placement.instances, strict=True):
        reason = _reason_of(device, instance, workers.get(device), placement, snapshot)
        found[reason].append(device)
    return _verdict(found, limits)


def _reason_of(
    device: DeviceId,
    instance: int,
    worker: WorkerRecord | None,
    placement: Placement,
    snapshot: Snapshot,
) -> HealthReason:
    node = snapshot.nodes.get(device.node)
    if node is None or all(record.id != device.device for record in node.devices):
        return HealthReason.NODE_LOST
    if worker is None or worker.instance != instance:
        return HealthReason.WORKER_MISSING
    if worker.state in DEAD:
        return HealthReason.WORKER_LOST
    if worker.epoch != placement.epoch:
        return HealthReason.EPOCH_BEHIND
    if worker.state is WorkerState.PARKED:
        return HealthReason.WORKER_PARKED
    return HealthReason.SERVING if worker.state in AT_WORK else HealthReason.EPOCH_BEHIND


def _verdict(found: dict[HealthReason, list[DeviceId]], limits: Limits) -> Health:
    lost = frozenset(found[HealthReason.NODE_LOST])
    # A worker that is not at the committed epoch cannot take part in the next one: it starts anew.
    restarted = frozenset(
        found[HealthReason.WORKER_LOST]
        + found[HealthReason.WORKER_MISSING]
        + found[HealthReason.EPOCH_BEHIND]
    )
    is_broken = bool(found[HealthReason.WORKER_LOST] or found[HealthReason.WORKER_PARKED])
    serving = found[HealthReason.SERVING]
    graces = {
        # Nobody serves any more, so there is nothing to protect by waiting for the node.
        HealthReason.NODE_LOST: 0.0 if is_broken else limits.node_grace_s,
        HealthReason.WORKER_LOST: 0.0,
        # Those that still claim to serve in the same group may be dead: their lease will tell.
        HealthReason.WORKER_PARKED: limits.split_grace_s if serving else limits.parked_grace_s,
        HealthReason.WORKER_MISSING: limits.missing_grace_s,
        HealthReason.EPOCH_BEHIND: limits.missing_grace_s,
    }
    for reason, grace_s in graces.items():
        if found[reason]:
            names = ", ".join(str(device) for device in found[reason])
            return Health(reason, f"{reason} on {names}", lost, restarted, grace_s)
    return Health(HealthReason.SERVING, f"{len(serving)} workers serve")
