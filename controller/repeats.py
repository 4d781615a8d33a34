"""What became of an operation id that was used before?

Pure. An intent is decided again when a client repeats it, and when nobody knew whether its write
had landed. Its own words are then measured against what they led to: "-1" would be one less again,
and the generation that it expected is gone by its own doing. So a repeat answers from the records.
"""

from typing import Any

from ..core.errors import ConflictError, RefusedError, UnplaceableError
from ..core.plan import TransitionPlan
from ..core.records import SpecRecord
from . import admission, planning
from .admission import Ground, plan_of_record, plan_view


def scaled(model: str, operation_id: str, ground: Ground) -> dict[str, Any] | None:
    """The answer to a scale whose id was used before; None when the id is new."""
    seen = ground.snapshot.transitions.get(operation_id)
    if seen is not None and seen.value.model != model:
        raise ConflictError(
            f"operation {operation_id} belongs to model {seen.value.model}",
            next_step="use a new operation_id for every intent",
        )
    body: dict[str, Any] = {"model": model, "operation_id": operation_id, "unchanged": True}
    if seen is not None:
        body |= {"generation": seen.value.generation, "phase": str(seen.value.phase)}
        return body | {"to_width": seen.value.new.width, "plan": plan_of_record(seen.value)}
    spec = ground.snapshot.model_spec(model)
    if spec is None or spec.value.operation_id != operation_id:
        return None
    return body | {"generation": spec.value.generation} | _ahead(model, spec.value, ground)


def _ahead(model: str, record: SpecRecord, ground: Ground) -> dict[str, Any]:
    """Where a spec that the loop has not acted on leads to, with the plan if there is one now."""
    spec = planning.spec_of(record)
    aim = admission.wanted(model, spec, ground)
    told: dict[str, Any] = {"to_width": aim.width, **admission.auto_view(aim)}
    try:
        plan = admission.admit(model, spec, aim, ground, must_be_live=False, pace=record.pace)
    except (UnplaceableError, RefusedError):
        return told  # it was accepted, and waits for what is missing by now
    return told | ({"plan": plan_view(plan)} if isinstance(plan, TransitionPlan) else {})
