"""What is true of a model, said in five widths and four conditions?

Pure. Status is only ever derived from the snapshot, so it can be computed again at any time by any
controller; the one thing it remembers is when each condition took its present value. A stale status
is recognised by `observed_generation`, which reaches a spec's generation when that generation has
been carried out or refused, not when it was merely read. Conditions carry their own: Admitted and
Progressing speak of the newest spec, Placed and Ready of the last one that was carried out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.plan import Infeasible, Phase, Placement
from ..core.records import (
    Condition,
    ConditionStatus,
    ModelStatus,
    SpecRecord,
    TransitionRecord,
)
from ..core.transitions import WorkerState
from ..placement.auto import AutoReason
from . import flips
from .auto_width import Wanted
from .flips import Flip
from .health import Health, HealthReason
from .observe import Snapshot

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
GERUNDS = {"create": "Creating", "scale": "Scaling", "heal": "Healing", "delete": "Deleting"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a spec cannot be carried out as it stands: reason word of the Admitted condition."""

    reason: str  # "Unplaceable" or "CheckpointUnreadable"
    message: str


NOT_ASKED = Wanted(0)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the reconcile code has found out about a model on its way."""

    health: Health | None = None  # None without a placement
    refusal: Refusal | None = None  # the spec can never be carried out on the declared fleet
    waiting: Infeasible | None = None  # it cannot be carried out on the live fleet
    failed_generation: int = 0
    failure: str = ""
    wanted: Wanted = NOT_ASKED
    is_behind: bool = False  # workers compute with other engine settings than are declared


def compute(
    model: str, spec: SpecRecord | None, found: Findings, snapshot: Snapshot, now: float
) -> ModelStatus:
    """The model's status as of the snapshot."""
    before = snapshot.status.get(model)
    placed = snapshot.placements.get(model)
    placement = placed.value if placed else None
    running = snapshot.running(model)
    transition = running.value if running else None
    generation = spec.generation if spec else (before.value.observed_generation if before else 0)
    desired = found.wanted.width if spec else 0
    last = before.value if before else None
    is_wide = placement is not None and placement.width == desired
    is_carried_out = transition is None and is_wide and not found.is_behind
    flip = flips.under_way(placement, transition, snapshot)
    newest, carried_out = generation, generation if is_carried_out else _carried_out_before(last)
    facets = [
        (newest, _admitted(found)),
        (carried_out, _placed(placement, found)),
        (newest, _progressing(transition, placement, desired, found)),
        (carried_out, _ready(placement, desired, found, flip)),
        *((newest, facet) for facet in _planned(found)),
    ]
    return ModelStatus(
        model=model,
        observed_generation=_observed(generation, is_carried_out, found, last),
        desired_width=desired,
        admitted_width=0 if found.refusal else desired,
        allocated_width=_allocated(placement, transition),
        joined_width=_joined(model, placement, transition, snapshot),
        effective_width=flips.effective(placement, flip, snapshot),
        epoch=placement.epoch if placement else 0,
        conditions=_conditions(facets, last, now),
        failed_generation=found.failed_generation,
    )


_Facet = tuple[str, ConditionStatus, str, str]  # type, status, reason, message


def _admitted(found: Findings) -> _Facet:
    if found.refusal:
        return "Admitted", FALSE, found.refusal.reason, found.refusal.message
    return "Admitted", TRUE, "Accepted", "the spec can be carried out"


def _placed(placement: Placement | None, found: Findings) -> _Facet:
    if placement is not None:
        devices = ", ".join(str(device) for device in placement.ranks)
        return "Placed", TRUE, "Placed", f"epoch {placement.epoch} on {devices}"
    if found.waiting:
        return "Placed", FALSE, "WaitingForDevices", reasons_text(found.waiting)
    return "Placed", FALSE, "NotPlaced", "no placement was committed yet"


def _progressing(
    transition: TransitionRecord | None,
    placement: Placement | None,
    desired: int,
    found: Findings,
) -> _Facet:
    if transition is not None:
        before = transition.old.width if transition.old else 0
        message = f"{before} -> {transition.new.width}, phase {transition.phase}"
        return "Progressing", TRUE, GERUNDS[str(transition.kind)], message
    if found.failed_generation:
        return "Progressing", FALSE, "Forfeited", found.failure
    if found.waiting:
        return "Progressing", FALSE, "WaitingForDevices", reasons_text(found.waiting)
    if placement is not None and placement.width == desired and not found.is_behind:
        word = "chosen" if found.wanted.is_auto else "declared"
        return "Progressing", FALSE, "Idle", f"width {desired} as {word}"
    return "Progressing", UNKNOWN, "Pending", "the change has not begun"


def _ready(placement: Placement | None, desired: int, found: Findings, flip: Flip | None) -> _Facet:
    if placement is None or found.health is None:
        return "Ready", FALSE, "NotPlaced", "no worker serves"
    health = found.health
    if health.reason is HealthReason.SERVING:
        if placement.width < desired:
            return "Ready", TRUE, "Narrow", f"{placement.width} of {desired} ranks serve"
        return "Ready", TRUE, str(health.reason), health.message
    if flip is not None and health.reason in (
        HealthReason.EPOCH_BEHIND,
        HealthReason.WORKER_MISSING,
    ):
        return "Ready", TRUE if flip.serves else FALSE, flip.reason, flip.message
    is_certain = health.reason in (HealthReason.WORKER_LOST, HealthReason.WORKER_PARKED)
    return "Ready", FALSE if is_certain else UNKNOWN, str(health.reason), health.message


def _planned(found: Findings) -> tuple[_Facet, ...]:
    """Of `parallelism: auto` only: the width that was chosen and why, or why none can be."""
    choice, refusal = found.wanted.choice, found.wanted.refusal
    if choice is not None:
        return (("Planned", TRUE, str(choice.reason), choice.message),)
    if refusal is not None:
        return (("Planned", FALSE, str(AutoReason.NO_WIDTH), reasons_text(refusal)),)
    return ()


def reasons_text(answer: Infeasible) -> str:
    """Why not, and the nearest change that would do."""
    nearest = f"; nearest that fits: {answer.nearest}" if answer.nearest else ""
    return "; ".join(answer.reasons) + nearest


def _observed(
    generation: int, is_carried_out: bool, found: Findings, before: ModelStatus | None
) -> int:
    """The generation, once it was carried out or refused; until then the one before."""
    if is_carried_out or found.refusal or found.failed_generation == generation:
        return generation
    return before.observed_generation if before else 0


def _carried_out_before(before: ModelStatus | None) -> int:
    """The last generation that was carried out, as the status before this one knew it."""
    known = (c.observed_generation for c in (before.conditions if before else ()))
    return min(known, default=0)


def _allocated(placement: Placement | None, transition: TransitionRecord | None) -> int:
    if transition is not None and transition.phase in (Phase.PREPARE, Phase.COMMIT, Phase.RETIRE):
        return transition.new.width
    return placement.width if placement else 0


def _joined(
    model: str,
    placement: Placement | None,
    transition: TransitionRecord | None,
    snapshot: Snapshot,
) -> int:
    """Workers that are in the group of the placement that is wanted now."""
    wanted = transition.new if transition and _allocated(None, transition) else placement
    if wanted is None:
        return 0
    workers = snapshot.workers.get(model, {})
    joined = (WorkerState.PREPARED, WorkerState.SERVING, WorkerState.LEAVING, WorkerState.PARKED)
    return sum(
        device in workers
        and workers[device].instance == instance
        and workers[device].state in joined
        for device, instance in zip(wanted.ranks, wanted.instances, strict=True)
    )


def _conditions(
    facets: Sequence[tuple[int, _Facet]], before: ModelStatus | None, now: float
) -> tuple[Condition, ...]:
    """Conditions with the time at which each took its present status and reason."""
    known = {c.type: c for c in before.conditions} if before else {}
    conditions = []
    for generation, (kind, status, reason, message) in facets:
        old = known.get(kind)
        is_same = old is not None and (old.status, old.reason) == (status, reason)
        changed_at = old.changed_at if old is not None and is_same else now
        conditions.append(Condition(kind, status, reason, message, generation, changed_at))
    return tuple(conditions)
