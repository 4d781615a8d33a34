"""Given what is declared and what is seen, what should change now?

No IO, no clock, no randomness, no logging: `reconcile` is a function of its arguments, and the loop
calls it again after every change. It never remembers anything; whatever it needs to know later
stands in a record. For each model, in this order:

    a transition runs      -> move it on (`lifecycle`)
    declared, not placed   -> CREATE
    placed, not declared   -> DELETE
    placed and not well    -> HEAL, after the grace that its trouble deserves (`health`)
    placed at other width  -> SCALE (the width declared, or the one `auto_width` chooses), also
                              where only engine settings differ from those in force
    and always             -> say so in its status (`status`), in the transaction of its change
"""

import dataclasses
from dataclasses import dataclass

from ..core.errors import SpecError
from ..core.plan import Infeasible, Pace, Phase, Placement, TransitionKind, TransitionPlan
from ..core.records import Condition, SpecRecord
from ..core.spec import ModelSpec
from ..core.units import format_bytes
from . import attempts, foresight, health, lifecycle, planning, prune, status
from .auto_width import AUTO_PREFIX, Scene, wanted_width
from .config import Limits
from .decision import Change, Decision, Draft
from .health import HealthReason
from .model_facts import Facts
from .observe import Seen, Snapshot
from .status import Findings, Refusal

NOTHING_FOUND = Findings()


@dataclass(frozen=True, slots=True)
class World:
    """One look at everything: the arguments of every rule here."""

    snapshot: Snapshot
    facts: Facts
    now: float
    limits: Limits


@dataclass(frozen=True, slots=True)
class Verdict:
    """One model's change, what was found on the way, and when to look again."""

    change: Change | None = None
    found: Findings = NOTHING_FOUND
    wake_at: float | None = None


def reconcile(snapshot: Snapshot, facts: Facts, now: float, limits: Limits) -> Decision:
    """All changes that are due, and the next time at which the clock alone makes one due."""
    world = World(snapshot, facts, now, limits)
    changes: list[Change] = []
    wakes: list[float] = []
    may_start = True
    for model in snapshot.models():
        verdict = _judge(model, world, may_start)
        if verdict.wake_at is not None:
            wakes.append(verdict.wake_at)
        if verdict.change is None:
            change = _status_change(model, verdict.found, world)
        else:
            change = _with_status(verdict.change, model, world)
        if change is not None:
            # One new transition a tick: the next is planned on a picture that has this one's bytes.
            may_start = may_start and snapshot.keys.active_of(model) not in dict(change.puts)
            changes.append(change)
    changes += prune.old_transitions(snapshot, limits)
    return Decision(tuple(changes), min(wakes, default=None))


def _judge(model: str, world: World, may_start: bool) -> Verdict:
    snapshot = world.snapshot
    running = snapshot.running(model)
    if running is not None:
        change, wake_at = lifecycle.advance(running, snapshot, world.now, world.limits)
        return Verdict(change, _findings(model, world), wake_at)
    spec = snapshot.model_spec(model)
    placed = snapshot.placements.get(model)
    if spec is None:
        return _judge_undeclared(model, placed, world) if may_start else Verdict()
    try:
        parsed = planning.spec_of(spec.value)
    except SpecError as error:
        return Verdict(found=Findings(refusal=Refusal("SpecInvalid", error.message)))
    verdict = _judge_declared(Model(model, spec, parsed, placed), world)
    if verdict.change is not None and not may_start:
        return Verdict(None, verdict.found, world.now)
    return verdict


@dataclass(frozen=True, slots=True)
class Model:
    """A declared model with its spec in typed form, and its placement if there is one."""

    name: str
    spec: Seen[SpecRecord]
    parsed: ModelSpec
    placed: Seen[Placement] | None


def _judge_undeclared(model: str, placed: Seen[Placement] | None, world: World) -> Verdict:
    """A model that nobody wants: take its placement away, then its status."""
    snapshot = world.snapshot
    if placed is None:
        seen = snapshot.status.get(model)
        if seen is None:
            return Verdict()
        key = snapshot.keys.status_of(model)
        draft = Draft(f"model/{model}", "StatusRemoved").guard(key, seen.mod_revision)
        spec_key = snapshot.keys.spec("Model", model)
        return Verdict(draft.guard(spec_key, 0).delete(key).done())
    spec = _last_spec(model, snapshot)
    wish = planning.Wish(TransitionKind.DELETE, model, spec[0], 0, placed.value)
    plan = planning.plan_wish(wish, snapshot, world.facts)
    assert isinstance(plan, TransitionPlan)  # deleting asks for nothing, so it always fits
    base = f"delete-{model}-e{placed.value.epoch}"
    return Verdict(_start(plan, base, spec[1], 0, world))


def _last_spec(model: str, snapshot: Snapshot) -> tuple[ModelSpec, dict[str, object]]:
    """The spec that the workers run with: nobody declares it any more, the journal has it."""
    plain = snapshot.history(model)[-1].model_spec
    return planning.model_spec_from_plain(plain), plain


def _judge_declared(model: Model, world: World) -> Verdict:
    found = _findings(model.name, world)
    if model.placed is not None and found.health is not None:
        if found.health.reason is not HealthReason.SERVING:
            return _judge_unwell(model, model.placed.value, found, world)
        is_wide = model.placed.value.width == found.wanted.width
        if is_wide and not found.is_behind:
            return Verdict(None, found, found.wanted.wake_at)
    if found.refusal or found.failed_generation:
        return Verdict(None, found, found.wanted.wake_at)
    return _judge_width(model, found, world)


def _judge_width(model: Model, found: Findings, world: World) -> Verdict:
    """CREATE or SCALE to the declared width, if it can be done with the nodes that are alive.

    SCALE to the width that is there moves nothing: its new epoch brings other engine settings.
    """
    old = model.placed.value if model.placed else None
    kind = TransitionKind.SCALE if old else TransitionKind.CREATE
    width = found.wanted.width
    pace = model.spec.value.pace
    wish = planning.Wish(kind, model.name, model.parsed, width, old, pace=pace)
    plan = planning.plan_wish(wish, world.snapshot, world.facts)
    if isinstance(plan, Infeasible):
        declared = planning.plan_declared(wish, world.snapshot, world.facts)
        if isinstance(declared, Infeasible):
            refusal = Refusal("Unplaceable", "; ".join(declared.reasons))
            return Verdict(None, dataclasses.replace(found, refusal=refusal, waiting=plan))
        return Verdict(None, dataclasses.replace(found, waiting=plan), found.wanted.wake_at)
    record = model.spec.value
    if old is not None and found.wanted.is_auto and _is_carried_out(model, world):
        base = f"{AUTO_PREFIX}{model.name}-e{old.epoch}"  # nobody asked: the fleet has changed
        return Verdict(_start(plan, base, record.spec, 0, world), found)
    earlier = attempts.attempts(model.name, record, world.snapshot)
    accepted_at = world.now if earlier else record.changed_at
    change = _start(plan, record.operation_id, record.spec, accepted_at, world, record.pace)
    return Verdict(change, found)


def _is_carried_out(model: Model, world: World) -> bool:
    """Whether the spec's generation was reached before, so that this change is our own idea."""
    seen = world.snapshot.status.get(model.name)
    return seen is not None and seen.value.observed_generation >= model.spec.value.generation


def _judge_unwell(model: Model, placement: Placement, found: Findings, world: World) -> Verdict:
    """HEAL once the trouble has lasted for its grace: as wide as devices allow."""
    trouble = found.health
    assert trouble is not None
    due_at = _since(model.name, trouble.reason, world) + trouble.grace_s
    due_at = max(due_at, _healing_may_start_at(model.name, placement, world))
    if world.now < due_at:
        return Verdict(None, found, due_at)
    wish = planning.Wish(
        TransitionKind.HEAL,
        model.name,
        model.parsed,
        placement.width,
        placement,
        trouble.lost,
        trouble.restarted,
    )
    plan = _widest_plan(wish, world)
    if isinstance(plan, Infeasible):
        return Verdict(None, dataclasses.replace(found, waiting=plan))
    base = f"heal-{model.name}-e{placement.epoch}"
    return Verdict(_start(plan, base, model.spec.value.spec, 0, world), found)


def _widest_plan(wish: planning.Wish, world: World) -> TransitionPlan | Infeasible:
    """The plan at the widest width that fits, from the present one down."""
    answer = planning.plan_wish(wish, world.snapshot, world.facts)
    for width in range(wish.width - 1, 0, -1):
        if isinstance(answer, TransitionPlan):
            break
        narrower = dataclasses.replace(wish, width=width)
        answer = planning.plan_wish(narrower, world.snapshot, world.facts)
    return answer


def _since(model: str, reason: HealthReason, world: World) -> float:
    """When the trouble was first written down; now, if it was not yet."""
    ready = condition(world.snapshot, model, "Ready")
    return ready.changed_at if ready and ready.reason == reason else world.now


def condition(snapshot: Snapshot, model: str, kind: str) -> Condition | None:
    """A condition of a model as it was last written."""
    seen = snapshot.status.get(model)
    found = [c for c in seen.value.conditions if c.type == kind] if seen else []
    return found[0] if found else None


def _healing_may_start_at(model: str, placement: Placement, world: World) -> float:
    """After a few failed heals of one epoch in a row, rest before the next."""
    failed = [
        t
        for t in world.snapshot.history(model)
        if t.kind is TransitionKind.HEAL
        and t.phase is Phase.FORFEITED
        and t.old is not None
        and t.old.epoch == placement.epoch
    ]
    if len(failed) % world.limits.attempts_max or not failed:
        return 0.0
    return failed[-1].phase_at[str(Phase.FORFEITED)] + world.limits.heal_rest_s


def _start(
    plan: TransitionPlan,
    base: str,
    model_spec: dict[str, object],
    accepted_at: float,
    world: World,
    pace: Pace = Pace.GENTLE,
) -> Change:
    """The transaction that begins a transition; nobody else may have begun one meanwhile."""
    snapshot, keys = world.snapshot, world.snapshot.keys
    model = plan.new.model
    spec = snapshot.model_spec(model)
    placed = snapshot.placements.get(model)
    operation_id, attempt = planning.free_operation_id(base, snapshot)
    intent = planning.Intent(
        operation_id=operation_id,
        generation=spec.value.generation if spec else 0,
        accepted_at=accepted_at or world.now,
        attempt=attempt,
        model_spec=model_spec,
        pace=pace,
    )
    record = planning.new_record(plan, intent, snapshot, world.now, world.limits)
    word = status.GERUNDS[str(plan.kind)]
    draft = Draft(f"model/{model}", word)
    draft.guard(keys.active_of(model), 0).guard(keys.transition(operation_id), 0)
    draft.guard(keys.spec("Model", model), spec.mod_revision if spec else 0)
    draft.guard(keys.placement(model), placed.mod_revision if placed else 0)
    draft.put(keys.active_of(model), operation_id)
    draft.put(keys.transition(operation_id), record)
    severity = "warning" if plan.kind is TransitionKind.HEAL else "info"
    draft.tell(world.now, severity, _announcement(plan), operation_id)
    return draft.done()


def _announcement(plan: TransitionPlan) -> str:
    widths = f"{plan.kind} {plan.old.width if plan.old else 0} -> {plan.new.width}"
    if plan.kind is TransitionKind.DELETE:
        return f"{widths}: everything is given back"
    moved = f"{format_bytes(plan.prediction.bytes_moved)} of experts to move"
    return f"{widths}: {moved} in about {plan.prediction.prepare_s:.2f} s"


def _findings(model: str, world: World) -> Findings:
    """What can be told of a model from records alone."""
    snapshot = world.snapshot
    placed = snapshot.placements.get(model)
    spec = snapshot.model_spec(model)
    found = Findings(
        health=health.examine(placed.value, snapshot, world.limits) if placed else None
    )
    if spec is None:
        return found
    parsed = planning.spec_of(spec.value)
    scene = Scene(snapshot, world.facts, world.limits, world.now)
    wanted = wanted_width(model, parsed, planning.base_placement(model, snapshot), scene)
    found = dataclasses.replace(found, wanted=wanted)
    if wanted.refusal is not None and placed is None:
        text = status.reasons_text(wanted.refusal)
        found = dataclasses.replace(found, refusal=Refusal("Unplaceable", text))
    if placed is not None and attempts.settings_behind(model, spec.value, snapshot):
        found = dataclasses.replace(found, is_behind=True)
    unreadable = planning.why_no_facts(parsed, world.facts)
    if unreadable is not None and placed is None:
        found = dataclasses.replace(
            found, refusal=Refusal("CheckpointUnreadable", unreadable.message)
        )
    failed = attempts.failed_for_good(model, spec.value, snapshot, world.limits)
    if failed is not None:
        found = dataclasses.replace(
            found, failed_generation=spec.value.generation, failure=failed.reason
        )
    return found


def _with_status(change: Change, model: str, world: World) -> Change:
    """A change together with the status that is true once it has happened."""
    ahead = dataclasses.replace(world, snapshot=foresight.ahead(world.snapshot, change))
    following = _status_change(model, _findings(model, ahead), ahead)
    return change if following is None else foresight.together(change, following)


def _status_change(model: str, found: Findings, world: World) -> Change | None:
    """Write the status if it differs from what stands there."""
    snapshot = world.snapshot
    spec = snapshot.model_spec(model)
    if spec is None and model not in snapshot.placements and model not in snapshot.active:
        return None
    if found.refusal is not None and found.refusal.reason == "SpecInvalid":
        return (
            None  # the record itself is unreadable: it is listed as such, there is no width to say
        )
    computed = status.compute(model, spec.value if spec else None, found, snapshot, world.now)
    seen = snapshot.status.get(model)
    if seen is not None and seen.value == computed:
        return None
    key = snapshot.keys.status_of(model)
    draft = Draft(f"model/{model}", "StatusChanged")
    draft.guard(key, seen.mod_revision if seen else 0).put(key, computed)
    return draft.done()
