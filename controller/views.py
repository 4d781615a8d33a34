"""What does the API show? The fleet as plain JSON, made from one snapshot.

Pure. Attempts of one operation are shown as one transition under the operation's id, so that
whoever waits for an operation sees it go on after a retry instead of a failure that is none.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from ..core.plan import Phase, TransitionKind
from ..core.records import NodeRecord, SpecRecord, TransitionRecord, to_plain
from ..core.spec import AUTO
from ..core.transitions import TERMINAL_PHASES
from .attempts import is_settled
from .config import Limits
from .decision import RETRYABLE, cause_of
from .masking import ANOTHER_TENANT
from .observe import Snapshot
from .ownership import notes_of
from .planning import ATTEMPT_MARK, base_operation, declared_devices, spec_of

TRANSITIONS_SHOWN = 20
EVENTS_SHOWN = 50
ACCEPTED = "accepted"  # shown as the phase of an intent that the loop has not begun yet
# Steps and placements of a large model are megabytes: whoever polls must not pay for them.
HIDDEN_FIELDS = frozenset({"steps", "model_spec", "old", "new"})
TRANSITION_FIELDS = tuple(
    field.name for field in dataclasses.fields(TransitionRecord) if field.name not in HIDDEN_FIELDS
)


def fleet(snapshot: Snapshot, cluster: str, now: float, limits: Limits) -> dict[str, Any]:
    """One FleetView: everything that a screen or a waiting command needs."""
    shown = transitions(snapshot, limits)[-TRANSITIONS_SHOWN:]
    return {
        "cluster": cluster,
        "revision": snapshot.revision,
        "at": now,
        "nodes": nodes(snapshot),
        "missing_nodes": missing_nodes(snapshot),
        "models": [model(name, snapshot, limits) for name in snapshot.models()],
        "transitions": shown,
        "events": events(snapshot)[-EVENTS_SHOWN:],
        "endpoints": {role: e.url for role, e in sorted(snapshot.endpoints.items())},
    }


def pages(told: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
    """A device's page map; of models that are not in the snapshot it says only that they hold."""
    seen = {"", *snapshot.models()}
    spans = [
        span if str(span[2]).partition("/")[0] in seen else [*span[:2], ANOTHER_TENANT, "in use"]
        for span in told["spans"]
    ]
    claims = [row for row in told.get("claims", []) if str(row[0]).partition("/")[0] in seen]
    others = [row for row in told.get("claims", []) if row not in claims]
    if others:
        sums = (sum(row[at] for row in others) for at in (1, 2, 3))
        claims.append([ANOTHER_TENANT, *sums])
    return {**told, "spans": spans, "claims": claims}


def nodes(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Live nodes with the pages of their devices."""
    return [node(record, snapshot) for _, record in sorted(snapshot.nodes.items())]


def node(record: NodeRecord, snapshot: Snapshot) -> dict[str, Any]:
    """One live node."""
    stats = snapshot.stats.get(record.name)
    plain: dict[str, Any] = to_plain(record)
    plain["usage"] = to_plain(stats.devices) if stats else []
    plain["stats_at"] = stats.at if stats else None
    return plain


def missing_nodes(snapshot: Snapshot) -> list[str]:
    """Nodes that are declared and not alive."""
    declared = {device.node for device in declared_devices(snapshot)}
    return sorted(declared - set(snapshot.nodes))


def model(name: str, snapshot: Snapshot, limits: Limits) -> dict[str, Any]:
    """One model: declared, allocated, and what its workers do."""
    spec = snapshot.model_spec(name)
    placed = snapshot.placements.get(name)
    seen = snapshot.status.get(name)
    running = snapshot.running(name)
    workers = sorted(snapshot.workers.get(name, {}).values(), key=lambda w: (w.rank, w.device))
    stats = [
        to_plain(worker)
        for _, node_stats in sorted(snapshot.stats.items())
        for worker in node_stats.workers
        if worker.model == name
    ]
    return {
        "name": name,
        "generation": spec.value.generation if spec else 0,
        "spec": spec.value.spec if spec else {},
        "operation_id": spec.value.operation_id if spec else "",
        "status": to_plain(seen.value) if seen else None,
        "placement": to_plain(placed.value) if placed else None,
        "workers": to_plain(workers),
        "stats": sorted(stats, key=lambda item: item["rank"]),
        "active": transition(running.value, snapshot, limits) if running else None,
    }


def declared(record: SpecRecord) -> dict[str, Any]:
    """One declared document, with the note of every field."""
    plain: dict[str, Any] = to_plain(record)
    return plain | {"fields": to_plain(notes_of(record))}


def transitions(
    snapshot: Snapshot, limits: Limits, model_name: str | None = None
) -> list[dict[str, Any]]:
    """Transitions, oldest first; one entry for all attempts at one operation."""
    records = [seen.value for seen in snapshot.transitions.values()]
    own = [r for r in records if model_name is None or r.model == model_name]
    firsts = [r for r in own if not _is_retry(r, snapshot)]
    ordered = sorted(firsts, key=lambda r: (r.accepted_at, r.operation_id))
    return [transition(record, snapshot, limits) for record in ordered]


def _is_retry(record: TransitionRecord, snapshot: Snapshot) -> bool:
    """Whether an earlier, forfeited attempt leads to this one."""
    before = _neighbour_id(record, -1)
    return before in snapshot.transitions and snapshot.transitions[before].value.phase in (
        Phase.FORFEIT,
        Phase.FORFEITED,
    )


def _neighbour_id(record: TransitionRecord, step: int) -> str:
    base, number = base_operation(record.operation_id), record.attempt + step
    return base if number == 1 else f"{base}{ATTEMPT_MARK}{number}"


def transition(record: TransitionRecord, snapshot: Snapshot, limits: Limits) -> dict[str, Any]:
    """An operation as its latest attempt stands, without steps and placements."""
    first = record
    while _is_retry(first, snapshot):
        first = snapshot.transitions[_neighbour_id(first, -1)].value
    latest = first
    while latest.phase is Phase.FORFEITED and _neighbour_id(latest, 1) in snapshot.transitions:
        latest = snapshot.transitions[_neighbour_id(latest, 1)].value
    plain = {name: to_plain(getattr(latest, name)) for name in TRANSITION_FIELDS}
    plain |= {
        "operation_id": first.operation_id,
        "record_id": latest.operation_id,
        "accepted_at": first.accepted_at,
        "attempt": latest.attempt - first.attempt + 1,
        "from_width": latest.old.width if latest.old else 0,
        "to_width": latest.new.width,
        "epoch": latest.new.epoch,
        "steps_total": len(latest.steps),
        "answered": sorted(
            node
            for node, ack in snapshot.acks.get(latest.operation_id, {}).items()
            if ack.phase is latest.phase
        ),
    }
    if _goes_on(latest, plain["attempt"], snapshot, limits):
        plain["phase"] = str(Phase.FORFEIT)  # it is not over: another attempt follows
    plain["final"] = Phase(plain["phase"]) in TERMINAL_PHASES
    return plain


def operation(operation_id: str, snapshot: Snapshot, limits: Limits) -> dict[str, Any] | None:
    """What became of an intent until now; None: unknown."""
    seen = snapshot.transitions.get(operation_id)
    if seen is None:
        return accepted(operation_id, snapshot, limits)
    return transition(seen.value, snapshot, limits)


def _aimed_at(name: str, spec: SpecRecord, snapshot: Snapshot) -> int | None:
    """The width that a spec leads to; None while nobody has chosen one for `auto` yet."""
    declared = spec_of(spec).parallelism.experts
    if declared != AUTO:
        return int(declared)
    seen = snapshot.status.get(name)
    if seen is None or seen.value.observed_generation < spec.generation:
        return None
    return seen.value.desired_width


def accepted(operation_id: str, snapshot: Snapshot, limits: Limits) -> dict[str, Any] | None:
    """An intent without a transition of its own, in the form of one; None: unknown."""
    for (kind, name), seen in snapshot.specs.items():
        spec = seen.value
        if kind != "Model" or spec.operation_id != operation_id:
            continue
        width = _aimed_at(name, spec, snapshot)
        placed = snapshot.placements.get(name)
        is_over = width is not None and is_settled(name, spec, width, snapshot, limits)
        if is_over and (placed is None or placed.value.width != width):
            return None  # it failed, and what is known of that is gone
        # Over without a transition of its own: what it asked for was there, or came under
        # another id. Whoever waits for this one is told so.
        return {
            "operation_id": operation_id,
            "model": name,
            "kind": str(TransitionKind.SCALE if placed else TransitionKind.CREATE),
            "phase": str(Phase.DONE) if is_over else ACCEPTED,
            "generation": spec.generation,
            "accepted_at": spec.changed_at,
            "from_width": placed.value.width if placed else 0,
            "to_width": width or 0,
            "phase_at": {},
            "deadline_at": 0.0,
            "prediction": {},
            "reason": _refusal(name, spec, snapshot),
            "final": is_over,
        }
    return None


def _refusal(name: str, spec: SpecRecord, snapshot: Snapshot) -> str:
    """Why the loop does not begin with a spec; empty when it has not said no."""
    seen = snapshot.status.get(name)
    if seen is None or seen.value.observed_generation < spec.generation:
        return ""
    denied = (c for c in seen.value.conditions if c.type == "Admitted" and c.status == "False")
    return next((f"{c.reason}: {c.message}" for c in denied), "")


def _goes_on(record: TransitionRecord, attempt: int, snapshot: Snapshot, limits: Limits) -> bool:
    """Whether a forfeited attempt will be followed by another."""
    spec = snapshot.model_spec(record.model)
    return (
        record.phase is Phase.FORFEITED
        and cause_of(record.reason) in RETRYABLE
        and attempt < limits.attempts_max
        and spec is not None
        and base_operation(spec.value.operation_id) == base_operation(record.operation_id)
    )


def events(snapshot: Snapshot, subject: str | None = None) -> list[dict[str, Any]]:
    """Events, oldest first."""
    found: Iterable[Any] = snapshot.events.values()
    wanted = [e for e in found if subject is None or e.subject == subject]
    return [to_plain(event) for event in sorted(wanted, key=lambda e: (e.at, e.id))]
