"""What is the next move of a running transition?

Pure. The phases and who moves them:

    PREPARE --all nodes ready--> COMMIT --all flipped--> RETIRE --all freed--> DONE
       |                            `- placement is written with this move: from here only forward
       `--refusal, death, deadline, cancel--> FORFEIT --all undone--> FORFEITED

Every move is one transaction on the transition's revision. PREPARE may fail in many ways and then
undoes itself; COMMIT and RETIRE never wait for ever: when their deadline passes (5 s when the new
group has lost a worker) they move on, and healing mends what is left.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.plan import Phase, StepKind, TransitionKind
from ..core.records import AckRecord, TransitionRecord
from ..core.transitions import PHASE_MOVES, WorkerState, checked_move
from .config import Limits
from .decision import Cause, Change, Draft, cause_of, cause_text
from .observe import Seen, Snapshot

# The move that follows when everything is well, and the word for it in events.
FORWARD = {
    Phase.PREPARE: (Phase.COMMIT, "Committing"),
    Phase.COMMIT: (Phase.RETIRE, "Committed"),
    Phase.RETIRE: (Phase.DONE, "Done"),
    Phase.FORFEIT: (Phase.FORFEITED, "Forfeited"),
}
DEADLINE_CAUSES = {
    Phase.PREPARE: Cause.PREPARE_DEADLINE,
    Phase.COMMIT: Cause.COMMIT_DEADLINE,
    Phase.RETIRE: Cause.RETIRE_DEADLINE,
}
# Figures that nodes measure side by side: the slowest counts. All others add up.
SLOWEST_SUFFIXES = ("_s", "_ms", "_at", "_step", "_ratio")


@dataclass(frozen=True, slots=True)
class Move:
    """The next phase, why, and in case of trouble what."""

    phase: Phase
    word: str
    cause: Cause | None = None
    detail: str = ""


def advance(
    seen: Seen[TransitionRecord], snapshot: Snapshot, now: float, limits: Limits
) -> tuple[Change | None, float]:
    """The change that moves it on (None: wait), and when to look again at the latest."""
    record = seen.value
    acks = snapshot.acks.get(record.operation_id, {})
    deadline_at = _deadline(record, snapshot, limits)
    move = _trouble(record, snapshot, acks) if record.phase is Phase.PREPARE else None
    if move is None and not _mute_nodes(record, snapshot, acks):
        move = _forward(record, snapshot, acks)
    if move is None and now >= deadline_at:
        move = _overdue(record, _mute_nodes(record, snapshot, acks))
    if move is None:
        return None, deadline_at
    return _change(seen, move, snapshot, now, limits), now


def required_nodes(record: TransitionRecord, snapshot: Snapshot) -> list[str]:
    """Nodes that must answer: all of the new placement, and those of the old one that are alive.

    A node of the old placement that is gone has nothing left to do; it is asked again if it returns
    while the phase lasts, and finds the end of the transition when it returns later.
    """
    leaving = {device.node for device in record.old.ranks} if record.old else set()
    return sorted({device.node for device in record.new.ranks} | (leaving & snapshot.nodes.keys()))


def _mute_nodes(
    record: TransitionRecord, snapshot: Snapshot, acks: Mapping[str, AckRecord]
) -> list[str]:
    """Required nodes that have not completed the phase; in PREPARE a no is handled before."""
    return [
        node
        for node in required_nodes(record, snapshot)
        if not (node in acks and acks[node].phase is record.phase)
    ]


def _trouble(
    record: TransitionRecord, snapshot: Snapshot, acks: Mapping[str, AckRecord]
) -> Move | None:
    """Why PREPARE must be undone, if it must."""
    if record.kind is not TransitionKind.DELETE and snapshot.model_spec(record.model) is None:
        return _forfeit(Cause.DELETED, f"model {record.model} was deleted")
    gone = sorted(node for node in _needed_nodes(record) if node not in snapshot.nodes)
    if gone and record.kind is not TransitionKind.DELETE:
        return _forfeit(Cause.NODE_LOST, ", ".join(gone))
    dead = lost_workers(record, snapshot)
    if dead and record.kind is not TransitionKind.DELETE:
        return _forfeit(Cause.WORKER_LOST, ", ".join(dead))
    for node, ack in sorted(acks.items()):
        if ack.phase is Phase.PREPARE and not ack.ok:
            return _forfeit(Cause.PREPARE_FAILED, f"{node}: {ack.error}")
    return None


def _needed_nodes(record: TransitionRecord) -> set[str]:
    """Nodes without which PREPARE cannot succeed: those of new ranks, and sources of copies."""
    nodes = {device.node for device in record.new.ranks}
    sources = (step.source for step in record.steps if step.kind is StepKind.COPY)
    return nodes | {source.node for source in sources if source is not None}


def lost_workers(record: TransitionRecord, snapshot: Snapshot) -> list[str]:
    """Workers of either epoch that died, except those whose replacement this transition starts."""
    expected = dict(zip(record.new.ranks, record.new.instances, strict=True))
    if record.old is not None:
        for device, instance in zip(record.old.ranks, record.old.instances, strict=True):
            # A heal leaves out what it heals; a device that leaves still counts while it serves.
            if record.kind is not TransitionKind.HEAL:
                expected.setdefault(device, instance)
    workers = snapshot.workers.get(record.model, {})
    return [
        f"{record.model} on {device}: {workers[device].message or 'died'}"
        for device, instance in sorted(expected.items())
        if device in workers
        and workers[device].instance == instance
        and workers[device].state is WorkerState.LOST
    ]


def _deadline(record: TransitionRecord, snapshot: Snapshot, limits: Limits) -> float:
    """The phase's own deadline, or sooner when somebody who has to answer is dead."""
    gone = set(required_nodes(record, snapshot)) - snapshot.nodes.keys()
    is_broken = gone or lost_workers(record, snapshot)
    if record.phase is Phase.PREPARE or not is_broken:
        return record.deadline_at
    entered_at = record.phase_at.get(str(record.phase), record.accepted_at)
    return min(record.deadline_at, entered_at + limits.broken_s)


def _forward(record: TransitionRecord, snapshot: Snapshot, acks: Mapping[str, AckRecord]) -> Move:
    phase, word = FORWARD[record.phase]
    if record.phase is Phase.FORFEIT and cause_of(record.reason) is Cause.PREPARE_FAILED:
        # A node may have said no before the death behind it was reported: that speaks for a retry.
        dead = lost_workers(record, snapshot)
        if dead:
            return Move(phase, word, Cause.WORKER_LOST, ", ".join(dead))
    errors = [f"{node}: {ack.error}" for node, ack in sorted(acks.items()) if not ack.ok]
    if errors and record.phase is Phase.COMMIT:
        return Move(phase, word, Cause.COMMIT_FAILED, "; ".join(errors))
    return Move(phase, word)


def _overdue(record: TransitionRecord, mute: list[str]) -> Move:
    detail = f"no answer from {', '.join(mute)}"
    if record.phase is Phase.PREPARE:
        return _forfeit(Cause.PREPARE_DEADLINE, detail)
    phase, word = FORWARD[record.phase]
    return Move(phase, word, DEADLINE_CAUSES.get(record.phase), detail)


def _forfeit(cause: Cause, detail: str) -> Move:
    return Move(Phase.FORFEIT, "Forfeiting", cause, detail)


def cancel(
    seen: Seen[TransitionRecord], cause: Cause, snapshot: Snapshot, now: float, limits: Limits
) -> Change:
    """Undo a transition that is still in PREPARE. The caller has checked the phase."""
    return _change(seen, _forfeit(cause, ""), snapshot, now, limits)


def _change(
    seen: Seen[TransitionRecord], move: Move, snapshot: Snapshot, now: float, limits: Limits
) -> Change:
    record = _moved(seen.value, move, snapshot, now, limits)
    keys = snapshot.keys
    draft = Draft(f"model/{record.model}", _event_word(record, move))
    draft.guard(keys.transition(record.operation_id), seen.mod_revision)
    draft.put(keys.transition(record.operation_id), record)
    if move.phase is Phase.COMMIT:
        _commit_placement(draft, record, snapshot)
    if not PHASE_MOVES[move.phase]:
        draft.delete(keys.active_of(record.model))
    severity = "warning" if move.cause else "info"
    draft.tell(now, severity, _story(record, move), record.operation_id)
    return draft.done()


def _commit_placement(draft: Draft, record: TransitionRecord, snapshot: Snapshot) -> None:
    """The decision itself: the new placement and phase COMMIT become true in one transaction."""
    key = snapshot.keys.placement(record.model)
    placed = snapshot.placements.get(record.model)
    draft.guard(key, placed.mod_revision if placed else 0)
    if record.kind is TransitionKind.DELETE:
        draft.delete(key)
    else:
        draft.put(key, record.new)


def _moved(
    record: TransitionRecord, move: Move, snapshot: Snapshot, now: float, limits: Limits
) -> TransitionRecord:
    waits = {
        Phase.COMMIT: limits.commit_s,
        Phase.RETIRE: limits.retire_s,
        Phase.FORFEIT: limits.forfeit_s,
    }
    phase_at = record.phase_at | {str(move.phase): now}
    actual = merge_figures(record.actual, snapshot.acks.get(record.operation_id, {}), record.phase)
    if move.phase is Phase.COMMIT:
        actual["prepare_s"] = now - record.phase_at[str(Phase.PREPARE)]
    if move.phase is Phase.RETIRE:
        # Ready is the moment at which the last rank flipped; its answer came a little later.
        ready_at = min(now, max(actual.get("flip_at", now), record.accepted_at))
        actual["ready_s"] = ready_at - record.accepted_at
    reason = cause_text(move.cause, move.detail) if move.cause else record.reason
    if record.phase in (Phase.COMMIT, Phase.RETIRE) and record.reason:
        reason = record.reason  # the first trouble after the decision explains the later ones
    return dataclasses.replace(
        record,
        phase=checked_move(PHASE_MOVES, record.phase, move.phase),
        phase_at=phase_at,
        deadline_at=now + waits.get(move.phase, 0.0),
        actual=actual,
        reason=reason,
    )


def merge_figures(
    known: Mapping[str, float], acks: Mapping[str, AckRecord], phase: Phase
) -> dict[str, float]:
    """Figures of all nodes for one phase, added to those of the phases before."""
    merged: dict[str, float] = {}
    for _, ack in sorted(acks.items()):
        for name, value in ack.figures.items() if ack.phase is phase else ():
            slowest = name.endswith(SLOWEST_SUFFIXES)
            before = merged.get(name)
            merged[name] = (
                value if before is None else max(before, value) if slowest else before + value
            )
    return dict(known) | merged


def _event_word(record: TransitionRecord, move: Move) -> str:
    return f"{str(record.kind).capitalize()}{move.word}"


def _story(record: TransitionRecord, move: Move) -> str:
    before = record.old.width if record.old else 0
    text = f"{record.kind} {before} -> {record.new.width}, epoch {record.new.epoch}: {move.phase}"
    return f"{text} ({cause_text(move.cause, move.detail)})" if move.cause else text
