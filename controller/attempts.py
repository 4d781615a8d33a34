"""Is an intent still to be carried out, by the journal itself?

Pure. The loop says in a status how far it has come, and may say it a tick after the transaction
that ended a transition. Whoever was told "done" by the transition may ask for the next width in
that gap, so admission must not ask the status: it asks the same records that the loop asks.
"""

from collections.abc import Mapping
from typing import Any

from ..core.plan import Phase, TransitionKind
from ..core.records import SpecRecord, TransitionRecord
from ..core.spec import LIVE_SETTINGS, EngineSpec
from .auto_width import AUTO_PREFIX, COMMITTED
from .config import Limits
from .decision import RETRYABLE, cause_of
from .observe import Snapshot

GENERATION_KINDS = (TransitionKind.CREATE, TransitionKind.SCALE)


def is_settled(
    model: str, spec: SpecRecord, width: int, snapshot: Snapshot, limits: Limits
) -> bool:
    """Whether nothing more will be done about this generation, which leads to `width`."""
    if snapshot.running(model) is not None:
        return False
    placed = snapshot.placements.get(model)
    is_wide = placed is not None and placed.value.width == width
    if is_wide and not settings_behind(model, spec, snapshot):
        return True
    return failed_for_good(model, spec, snapshot, limits) is not None


def settings_behind(model: str, spec: SpecRecord, snapshot: Snapshot) -> bool:
    """Whether the workers compute with other engine settings than the spec declares.

    They took those of the last transition that was committed: the journal has them.
    """
    for record in reversed(snapshot.history(model)):
        if record.phase in COMMITTED:
            return bool(record.model_spec) and _live(record.model_spec) != _live(spec.spec)
    return False


def _live(plain: Mapping[str, Any]) -> dict[str, Any]:
    engine, fields = plain.get("engine") or {}, EngineSpec.model_fields
    usual = {field.alias: field.default for field in fields.values()}
    return {name: engine.get(name, usual[name]) for name in LIVE_SETTINGS}


def failed_for_good(
    model: str, spec: SpecRecord, snapshot: Snapshot, limits: Limits
) -> TransitionRecord | None:
    """The last attempt, if it was forfeited and nothing speaks for another one."""
    in_a_row: list[TransitionRecord] = []
    for attempt in reversed(attempts(model, spec, snapshot)):
        if attempt.phase is not Phase.FORFEITED:
            break
        in_a_row.append(attempt)
    if not in_a_row:
        return None
    may_retry = cause_of(in_a_row[0].reason) in RETRYABLE
    if may_retry and len(in_a_row) < limits.attempts_max:
        return None
    return in_a_row[0]


def attempts(model: str, spec: SpecRecord, snapshot: Snapshot) -> list[TransitionRecord]:
    """Transitions that tried to carry out this generation of this spec, oldest first."""
    return [
        t
        for t in snapshot.history(model)
        if t.kind in GENERATION_KINDS
        and t.generation == spec.generation
        and not t.operation_id.startswith(AUTO_PREFIX)
        and t.accepted_at >= spec.changed_at
    ]
