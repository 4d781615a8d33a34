"""Can a wanted width be reached, and does anything stand in the way right now?

Pure. The questions that every intent about a model's width has in common: what it would start from,
what is running, what the planner says, and how to say no so that a person knows what to do.
"""

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.errors import ConflictError, NotFoundError, RefusedError, UnplaceableError
from ..core.plan import Infeasible, Pace, Phase, Placement, StepKind, TransitionKind, TransitionPlan
from ..core.records import TransitionRecord, to_plain
from ..core.spec import ModelSpec
from ..placement.executable import RULES
from . import attempts, planning
from .auto_width import Scene, Wanted, wanted_width
from .config import Limits
from .model_facts import Facts
from .observe import Seen, Snapshot


@dataclass(frozen=True, slots=True)
class Ground:
    """What every intent is judged on."""

    snapshot: Snapshot
    facts: Facts
    limits: Limits = field(default_factory=Limits)

    def with_transitions(self, kept: dict[str, Seen[TransitionRecord]]) -> "Ground":
        """The same ground with these transitions only: those that the caller may see."""
        return replace(self, snapshot=replace(self.snapshot, transitions=kept))


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that was accepted and is not over."""

    operation_id: str
    target: int
    kind: str
    phase: str


def pending(model: str, ground: Ground) -> Pending | None:
    """The running transition, or the accepted intent that the loop has not begun yet.

    A heal is nobody's wish about the width: it does not stand in the way of one.
    """
    running = ground.snapshot.running(model)
    if running is not None and running.value.kind is not TransitionKind.HEAL:
        record = running.value
        target = record.new.width
        if record.phase is Phase.FORFEIT:
            return None  # it is being undone, whatever it was
        operation = planning.base_operation(record.operation_id)
        return Pending(operation, target, str(record.kind), str(record.phase))
    spec = ground.snapshot.model_spec(model)
    status = ground.snapshot.status.get(model)
    if spec is None or running is not None:
        return None
    width = wanted(model, planning.spec_of(spec.value), ground).width
    if attempts.is_settled(model, spec.value, width, ground.snapshot, ground.limits):
        return None  # the status may not say so yet: the loop writes it one tick later
    observed = status.value.observed_generation if status else 0
    is_waiting = any(
        c.type == "Progressing" and c.reason == "WaitingForDevices"
        for c in (status.value.conditions if status else ())
        if c.observed_generation == spec.value.generation
    )
    if spec.value.generation > observed and not is_waiting:
        return Pending(spec.value.operation_id, width, "scale", "accepted")
    return None


def wanted(model: str, spec: ModelSpec, ground: Ground) -> Wanted:
    """The width that a spec leads to now: the declared one, or what the planner chooses."""
    old = planning.base_placement(model, ground.snapshot)
    return wanted_width(model, spec, old, Scene(ground.snapshot, ground.facts, ground.limits))


def conflict(model: str, running: Pending, width: int) -> ConflictError:
    """The refusal of a width while another operation runs; it names that operation."""
    return ConflictError(
        f"model {model}: operation {running.operation_id} ({running.kind} to {running.target},"
        f" {running.phase}) is running, so it cannot go to {width} now",
        next_step=f"wait for {running.operation_id} to end, or cancel it",
    )


def admit(
    model: str,
    spec: ModelSpec,
    aim: Wanted,
    ground: Ground,
    *,
    must_be_live: bool,
    pace: Pace = Pace.GENTLE,
) -> TransitionPlan | None:
    """The plan to the wanted width, None when it is there; raises what stands against it."""
    unreadable = planning.why_no_facts(spec, ground.facts)
    if unreadable is not None:
        raise RefusedError(f"model {model}: {unreadable.message}", next_step=unreadable.next_step)
    if aim.refusal is not None:
        raise no_width(model, aim.refusal)
    width = aim.width
    old = planning.base_placement(model, ground.snapshot)
    if old is not None and old.width == width:
        return None
    kind = TransitionKind.SCALE if old else TransitionKind.CREATE
    wish = planning.Wish(kind, model, spec, width, old, pace=pace)
    plan = planning.plan_wish(wish, ground.snapshot, ground.facts)
    if isinstance(plan, Infeasible) and not must_be_live:
        declared = planning.plan_declared(wish, ground.snapshot, ground.facts)
        plan = declared if isinstance(declared, TransitionPlan) else plan
    if isinstance(plan, Infeasible):
        raise _unplaceable(model, width, plan, ground.snapshot)
    return plan


def _unplaceable(
    model: str, width: int, answer: Infeasible, snapshot: Snapshot
) -> UnplaceableError:
    live = len(planning.live_devices(snapshot))
    declared = len(planning.declared_devices(snapshot))
    there = f"{live} devices are alive" + (f" of {declared} declared" if declared > live else "")
    nearest = f"the nearest that fits: {answer.nearest}" if answer.nearest else ""
    return UnplaceableError(
        f"model {model} cannot be spread over {width} devices; {there}",
        reasons=answer.reasons,
        next_step=nearest or "declare more devices, or free the ones there are",
    )


def no_width(model: str, answer: Infeasible) -> UnplaceableError:
    """The refusal of `parallelism: auto` when no width keeps all limits."""
    nearest = f"needs {answer.nearest}" if answer.nearest else ""
    return UnplaceableError(
        f"model {model}: parallelism auto finds no width that keeps all limits",
        reasons=answer.reasons,
        next_step=nearest or "declare other devices, or `experts: N`",
    )


def unknown_model(model: str, ground: Ground) -> NotFoundError:
    """The refusal of a name that nobody declared; it lists those that are."""
    names = sorted(name for kind, name in ground.snapshot.specs if kind == "Model")
    return NotFoundError(
        f"no model {model!r} is declared", next_step=f"declared: {', '.join(names) or 'none'}"
    )


def plan_view(plan: TransitionPlan) -> dict[str, Any]:
    """What a plan will do, for people: prediction, steps by kind, experts per device."""
    return {
        "kind": str(plan.kind),
        "from_width": plan.old.width if plan.old else 0,
        "to_width": plan.new.width,
        "prediction": to_plain(plan.prediction),
        "steps": {str(kind): sum(step.kind is kind for step in plan.steps) for kind in StepKind},
        "devices": _experts_per_device(plan.new),
    }


def auto_view(aim: Wanted) -> dict[str, Any]:
    """What the planner chose and weighed, for people; empty when the spec names the width."""
    if aim.choice is None:
        return {}
    choice = aim.choice
    return {
        "auto": {
            "width": choice.width,
            "reason": str(choice.reason),
            "message": choice.message,
            "options": [dataclasses.asdict(option) for option in choice.options],
            "layouts": [rule.name for rule in RULES],
        }
    }


def plan_of_record(record: TransitionRecord) -> dict[str, Any]:
    """The same view of a plan that was begun already."""
    return plan_view(
        TransitionPlan(record.kind, record.old, record.new, record.steps, record.prediction)
    )


def _experts_per_device(placement: Placement) -> dict[str, int]:
    return {
        str(device): sum(1 for _ in placement.experts_on(rank))
        for rank, device in enumerate(placement.ranks)
    }
