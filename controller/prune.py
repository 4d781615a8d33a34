"""Which finished transitions may be forgotten? Pure.

The journal is for people and for counting attempts; both look back a few dozen transitions at most.
A running transition is never pruned.
"""

from ..core.transitions import TERMINAL_PHASES
from .config import Limits
from .decision import Change, Draft
from .observe import Snapshot


def old_transitions(snapshot: Snapshot, limits: Limits) -> list[Change]:
    """At most one change: the oldest finished transitions over the limit, with their answers."""
    models = sorted({seen.value.model for seen in snapshot.transitions.values()})
    doomed: list[str] = []
    for model in models:
        finished = [t for t in snapshot.history(model) if t.phase in TERMINAL_PHASES]
        excess = len(finished) - limits.transitions_kept
        doomed += [t.operation_id for t in finished[: max(0, excess)]]
    draft = Draft("cluster", "HistoryPruned")
    for operation_id in doomed:
        acks = snapshot.acks.get(operation_id, {})
        if len(draft.deletes) + len(acks) + 1 > limits.keys_pruned_max and draft.deletes:
            break
        draft.delete(snapshot.keys.transition(operation_id))
        for node in list(acks)[: limits.keys_pruned_max - 1]:
            draft.delete(snapshot.keys.ack(operation_id, node))
    return [draft.done()] if draft.deletes else []
