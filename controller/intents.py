"""May this request be carried out, and which records say that it shall be?

Pure: from a snapshot and a request to an `Accepted` answer with one `Change`, or an error that a
person can act on. An intent only ever changes a spec; the reconcile loop does the rest. The plan
that comes with the answer is made by the same planner on the same records.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..core.errors import (
    ConflictError,
    NotFoundError,
    RefusedError,
    UnplaceableError,
    UsageError,
)
from ..core.plan import Infeasible, Pace, Phase, TransitionPlan
from ..core.records import SpecRecord
from ..core.spec import AUTO, LIVE_SETTINGS, ClusterSpec, ModelSpec, spec_from_plain
from ..core.spec import to_plain as spec_to_plain
from . import admission, attempts, lifecycle, ownership, planning, repeats
from .admission import Ground, plan_view
from .auto_width import AUTO_PREFIX
from .decision import Cause, Change, Draft
from .observe import Seen
from .ownership import Writer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
RELATIVE = re.compile(r"[+-]?\d{1,9}")
WIDTH = "parallelism.experts"
# Parts of a Model spec that workers read once, at their start; of `engine` all but LIVE_SETTINGS.
FIXED_WHILE_RUNNING = ("source", "memory", "engine", "precision")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, when, and under which operation id."""

    name: str
    now: float
    operation_id: str
    dry_run: bool = False
    tenant: str = "default"
    writer: Writer | None = None  # who will own what is changed; None: the person of that name
    pace: Pace = Pace.GENTLE

    @property
    def as_writer(self) -> Writer:
        """The owner of what this caller changes."""
        return self.writer or Writer(self.name)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.operation_id):
            raise UsageError(
                f"operation_id {self.operation_id!r} is not usable",
                next_step="use 1 to 63 letters, digits, '.', '_' or '-'",
            )
        if self.operation_id.startswith(AUTO_PREFIX):  # its failures would not count as attempts
            raise UsageError(
                f"operation_id {self.operation_id!r}: {AUTO_PREFIX}... are the ids of changes that"
                " nobody asked for",
                next_step="use another id, such as scale-1",
            )


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to an intent; no change means that nothing has to be written."""

    body: dict[str, Any]
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Declaration:
    """A document of an apply request, already typed."""

    kind: str
    name: str
    spec: ClusterSpec | ModelSpec


def parse_declarations(documents: Sequence[dict[str, Any]]) -> list[Declaration]:
    """Type the documents of a request, clusters first; raises SpecError, UsageError."""
    parsed = []
    for index, document in enumerate(documents):
        kind, name, spec = (document.get(key) for key in ("kind", "name", "spec"))
        if not isinstance(kind, str) or not isinstance(name, str) or not isinstance(spec, dict):
            raise UsageError(
                f"documents[{index}]: kind, name or spec is missing",
                next_step="send {kind, name, spec} for every document",
            )
        if not NAME.fullmatch(name):
            raise UsageError(f"documents[{index}]: name {name!r} is not usable")
        parsed.append(Declaration(kind, name, spec_from_plain(kind, spec)))
    return sorted(parsed, key=lambda d: (d.kind != "Cluster", d.name))


def with_declared(ground: Ground, before: Sequence[Declaration]) -> Ground:
    """The ground as it will be when the clusters of the same request are declared.

    A dry run writes nothing, yet its models are judged with the devices that it declares.
    """
    specs = dict(ground.snapshot.specs)
    for document in before:
        key = (document.kind, document.name)
        if document.kind == "Cluster":
            plain = spec_to_plain(document.spec)
            record = SpecRecord(document.kind, document.name, 0, plain, "", 0.0, "")
            specs[key] = Seen(record, specs[key].mod_revision if key in specs else 0)
    return dataclasses.replace(ground, snapshot=dataclasses.replace(ground.snapshot, specs=specs))


def folders(document: Declaration) -> tuple[str, ...]:
    """Checkpoint folders that a document names."""
    return (document.spec.source.path,) if isinstance(document.spec, ModelSpec) else ()


def decide_apply(
    wanted: Declaration, ground: Ground, caller: Caller, expected_generation: int | None = None
) -> Accepted:
    """Declare one document; `unchanged` when it says what is already there."""
    seen = ground.snapshot.specs.get((wanted.kind, wanted.name))
    is_stale = seen is not None and expected_generation not in (None, seen.value.generation)
    if seen is not None and is_stale and seen.value.operation_id != caller.operation_id:
        raise ownership.stale(seen.value, expected_generation or 0)
    merged = ownership.merge(
        seen.value if seen else None, spec_to_plain(wanted.spec), caller.as_writer
    )
    if merged.kept:  # what belongs to others stays, and is judged together with the rest
        wanted = Declaration(wanted.kind, wanted.name, spec_from_plain(wanted.kind, merged.spec))
    plain = merged.spec
    if seen is not None and is_stale and seen.value.spec != plain:
        raise ownership.stale(seen.value, expected_generation or 0)
    # Words that failed for good are a new try; those that outdated their own If-Match are not.
    has_failed = not is_stale and _has_failed(wanted.name, seen, ground)
    if seen is not None and seen.value.spec == plain and not has_failed:
        said = _applied(wanted, seen.value, "unchanged") | _kept(merged.kept)
        return Accepted(said | _auto_now(wanted, ground))
    plan: TransitionPlan | Infeasible | None = None
    auto: dict[str, Any] = {}
    if isinstance(wanted.spec, ModelSpec):
        _refuse_live_changes(wanted.name, seen, plain)
        aim = admission.wanted(wanted.name, wanted.spec, ground)
        running = admission.pending(wanted.name, ground)
        if running is not None and running.target != aim.width:
            raise admission.conflict(wanted.name, running, aim.width)
        plan = admission.admit(wanted.name, wanted.spec, aim, ground, must_be_live=False)
        auto = admission.auto_view(aim)
    record = _next_record(wanted.kind, wanted.name, plain, seen, caller)
    action = "configured" if seen else "created"
    body = _applied(wanted, record, action) | _kept(merged.kept) | auto
    if isinstance(plan, TransitionPlan):
        body["plan"] = plan_view(plan)
    return Accepted(body, None if caller.dry_run else _write(record, seen, ground, "SpecApplied"))


def _has_failed(name: str, seen: Seen[SpecRecord] | None, ground: Ground) -> bool:
    if seen is None or seen.value.kind != "Model":
        return False
    return attempts.failed_for_good(name, seen.value, ground.snapshot, ground.limits) is not None


def _applied(wanted: Declaration, record: SpecRecord, action: str) -> dict[str, Any]:
    return {
        "kind": wanted.kind,
        "name": wanted.name,
        "action": action,
        "generation": record.generation,
        "operation_id": record.operation_id,
    }


def _auto_now(wanted: Declaration, ground: Ground) -> dict[str, Any]:
    """What `parallelism: auto` leads to at this moment; nothing for other documents."""
    if not isinstance(wanted.spec, ModelSpec):
        return {}
    return admission.auto_view(admission.wanted(wanted.name, wanted.spec, ground))


def _kept(paths: tuple[str, ...]) -> dict[str, Any]:
    return {"kept": list(paths)} if paths else {}


def _refuse_live_changes(name: str, seen: Seen[SpecRecord] | None, plain: dict[str, Any]) -> None:
    if seen is None:
        return
    before, after = _fixed(seen.value.spec), _fixed(plain)
    changed = [part for part in FIXED_WHILE_RUNNING if before.get(part) != after[part]]
    if changed:
        raise RefusedError(
            f"model {name}: {', '.join(changed)} cannot change while the model runs",
            next_step=f"delete model {name} and apply it again, or apply it under another name",
        )


def _fixed(plain: dict[str, Any]) -> dict[str, Any]:
    """A spec without the engine settings that workers take at the next epoch."""
    engine = plain.get("engine") or {}
    fixed = {name: value for name, value in engine.items() if name not in LIVE_SETTINGS}
    return {**plain, "engine": fixed}


def decide_scale(
    model: str,
    experts: str,
    ground: Ground,
    caller: Caller,
    expected_generation: int | None = None,
) -> Accepted:
    """Another width for a model. Asking twice for the same, or with one id, changes nothing."""
    seen = ground.snapshot.model_spec(model)
    if seen is None:
        raise admission.unknown_model(model, ground)
    spec = planning.spec_of(seen.value)
    known = repeats.scaled(model, caller.operation_id, ground)
    if known is not None:  # before the width is read: "-1" would be one less than it led to
        return Accepted(known)
    known_width = admission.wanted(model, spec, ground).width
    declared = AUTO if str(experts).strip() == AUTO else parse_width(experts, known_width)
    if expected_generation not in (None, seen.value.generation):
        raise ownership.stale(seen.value, expected_generation or 0)
    changed = _widened(spec, declared)
    ownership.merge(seen.value, spec_to_plain(changed), caller.as_writer)
    aim = admission.wanted(model, changed, ground)
    width = aim.width
    running = admission.pending(model, ground)
    if running is not None and running.target != width:
        raise admission.conflict(model, running, width)
    plan = admission.admit(model, changed, aim, ground, must_be_live=True, pace=caller.pace)
    body: dict[str, Any] = {
        "model": model,
        "generation": seen.value.generation,
        "to_width": width,
        **admission.auto_view(aim),
    }
    if isinstance(plan, TransitionPlan):
        body["plan"] = plan_view(plan)
    placed = ground.snapshot.placements.get(model)
    is_there = placed is not None and placed.value.width == width and running is None
    is_said = spec.parallelism.experts == declared
    if (running is not None and is_said) or (is_there and is_said):
        operation = running.operation_id if running else seen.value.operation_id
        body |= {"operation_id": operation, "unchanged": True}
        return _take_over(body, seen, ground, caller)
    record = _next_record("Model", model, spec_to_plain(changed), seen, caller)
    body |= {"operation_id": record.operation_id, "generation": record.generation}
    if is_there:
        body["settled"] = True  # the width only changes hands: no transition follows
    return Accepted(body, None if caller.dry_run else _write(record, seen, ground, "ScaleAccepted"))


def _take_over(
    body: dict[str, Any], seen: Seen[SpecRecord], ground: Ground, caller: Caller
) -> Accepted:
    """The width is there already; `take` moves it to the person all the same."""
    fields = ownership.take(seen.value, WIDTH, caller.as_writer)
    if fields is None:
        return Accepted(body)
    draft = Draft(f"model/{seen.value.name}", "FieldTaken")
    key = ground.snapshot.keys.spec("Model", seen.value.name)
    draft.guard(key, seen.mod_revision).put(key, dataclasses.replace(seen.value, fields=fields))
    draft.tell(caller.now, "info", f"{WIDTH} taken from {fields[WIDTH].before} by {caller.name}")
    return Accepted(body | {"taken": WIDTH}, None if caller.dry_run else draft.done())


def parse_width(experts: str, now: int) -> int:
    """ "8", "+2" or "-1" as a width; raises UsageError on other text, Unplaceable below 1."""
    text = str(experts).strip()
    if not RELATIVE.fullmatch(text):
        raise UsageError(
            f"experts {experts!r} is not a width", next_step='use a number, "+2", "-1" or auto'
        )
    width = now + int(text) if text[0] in "+-" else int(text)
    if width < 1:
        raise UnplaceableError(
            f"{width} devices asked for, at least 1 is needed",
            next_step="use `moectl delete` to take a model away",
        )
    return width


def _widened(spec: ModelSpec, width: int | Literal["auto"]) -> ModelSpec:
    parallelism = spec.parallelism.model_copy(update={"experts": width})
    return spec.model_copy(update={"parallelism": parallelism})


def _next_record(
    kind: str, name: str, plain: dict[str, Any], seen: Seen[SpecRecord] | None, caller: Caller
) -> SpecRecord:
    before, writer = (seen.value if seen else None), caller.as_writer
    return SpecRecord(
        kind=kind,
        name=name,
        generation=before.generation + 1 if before else 1,
        spec=plain,
        operation_id=caller.operation_id,
        changed_at=caller.now,
        changed_by=writer.owner,
        fields=ownership.merge(before, plain, writer).fields,
        origin=dict(writer.origin) or (before.origin if before else {}),
        tenant=before.tenant if before else caller.tenant,
        pace=caller.pace,
    )


def decide_release(kind: str, name: str, path: str, ground: Ground, caller: Caller) -> Accepted:
    """Give a field back to the owner that it was taken from; its value stays until they write."""
    seen = ground.snapshot.specs.get((kind, name))
    if seen is None:
        raise NotFoundError(f"no {kind} {name!r} is declared")
    fields = ownership.release(seen.value, path, caller.name)
    record = dataclasses.replace(seen.value, fields=fields)
    draft = Draft(f"{kind.lower()}/{name}", "FieldReleased")
    key = ground.snapshot.keys.spec(kind, name)
    draft.guard(key, seen.mod_revision).put(key, record)
    draft.tell(caller.now, "info", f"{path} given back to {fields[path].owner} by {caller.name}")
    body = {"kind": kind, "name": name, "field": path, "owner": fields[path].owner}
    return Accepted(body, None if caller.dry_run else draft.done())


def _write(
    record: SpecRecord, seen: Seen[SpecRecord] | None, ground: Ground, reason: str
) -> Change:
    keys = ground.snapshot.keys
    key = keys.spec(record.kind, record.name)
    draft = Draft(f"{record.kind.lower()}/{record.name}", reason)
    draft.guard(key, seen.mod_revision if seen else 0).put(key, record)
    if record.kind == "Model":
        active = ground.snapshot.active.get(record.name)
        draft.guard(keys.active_of(record.name), active.mod_revision if active else 0)
    draft.tell(
        record.changed_at,
        "info",
        f"generation {record.generation} by {record.changed_by}",
        record.operation_id,
    )
    return draft.done()


def decide_delete(
    kind: str, name: str, ground: Ground, caller: Caller, expected_generation: int | None = None
) -> Accepted:
    """Take a declaration away; the loop takes the placement away."""
    seen = ground.snapshot.specs.get((kind, name))
    if seen is None:
        raise NotFoundError(f"no {kind} {name!r} is declared")
    if expected_generation not in (None, seen.value.generation):
        raise ownership.stale(seen.value, expected_generation or 0)
    body: dict[str, Any] = {"kind": kind, "name": name, "action": "deleted"}
    placed = ground.snapshot.placements.get(name)
    if kind == "Model" and placed is not None:
        body["operation_id"] = f"delete-{name}-e{placed.value.epoch}"
    key = ground.snapshot.keys.spec(kind, name)
    draft = Draft(f"{kind.lower()}/{name}", "SpecDeleted").guard(key, seen.mod_revision).delete(key)
    draft.tell(caller.now, "info", f"deleted by {caller.name}")
    return Accepted(body, None if caller.dry_run else draft.done())


def decide_cancel(operation_id: str, ground: Ground, caller: Caller) -> Accepted:
    """Undo a transition that has not been committed."""
    found = [
        seen
        for seen in ground.snapshot.transitions.values()
        if planning.base_operation(seen.value.operation_id) == operation_id
    ]
    if not found:
        raise NotFoundError(f"no operation {operation_id!r} is known")
    seen = max(found, key=lambda item: item.value.attempt)
    record = seen.value
    body = {"operation_id": operation_id, "model": record.model}
    if record.phase in (Phase.FORFEIT, Phase.FORFEITED):
        return Accepted(body | {"phase": str(record.phase), "unchanged": True})
    if record.phase is not Phase.PREPARE:
        raise ConflictError(
            f"operation {operation_id} is in phase {record.phase}: the decision is made",
            next_step="scale back when it is done",
        )
    change = lifecycle.cancel(seen, Cause.CANCELLED, ground.snapshot, caller.now, ground.limits)
    return Accepted(body | {"phase": str(Phase.FORFEIT)}, None if caller.dry_run else change)
