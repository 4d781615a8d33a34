"""Which columns does each kind of thing have? Pure: a fleet snapshot becomes listings to print."""

from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import UsageError
from ..core.families import FAMILIES, LAYOUTS
from ..core.records import to_plain
from ..core.units import format_bytes
from .fleet_view import FleetView, ModelView, TransitionView
from .render import Column, Listing, Row

# What people type, singular and short forms included.
KINDS = ("nodes", "models", "workers", "transitions", "events", "pages", "engines")
ALIASES = {
    "node": "nodes",
    "no": "nodes",
    "model": "models",
    "worker": "workers",
    "transition": "transitions",
    "tr": "transitions",
    "event": "events",
    "ev": "events",
    "page": "pages",
    "hbm": "pages",
    "engine": "engines",
}


def kind_of(word: str) -> str:
    """The kind that a word means; raises UsageError naming all of them."""
    kind = ALIASES.get(word, word)
    if kind not in KINDS:
        raise UsageError(f"{word!r} is not a kind", next_step=f"use one of: {', '.join(KINDS)}")
    return kind


def listing_of(fleet: FleetView, kind: str, name: str | None = None) -> Listing:
    """Everything of a kind, or the one of that name."""
    makers: Mapping[str, Callable[[FleetView], Listing]] = {
        "nodes": nodes,
        "models": models,
        "workers": workers,
        "transitions": transitions,
        "events": events,
        "pages": pages,
        "engines": lambda _: engines(),
    }
    return only(makers[kind](fleet), name)


def only(listing: Listing, name: str | None) -> Listing:
    """The whole listing, or the one row of that name; raises UsageError when there is none."""
    if name is None:
        return listing
    rows = [row for row in listing.rows if listing.name_of(row) == name]
    if not rows:
        raise UsageError(
            f"no {listing.kind} named {name!r}",
            next_step=f"`moectl get {listing.kind}s -o name` lists them",
        )
    return Listing(listing.kind, rows, listing.columns, listing.name_of, listing.more)


def engines() -> Listing:
    """Families that the engine of this version executes, and the layouts it runs them in."""
    rows: list[Row] = [to_plain(family) | {"layouts": LAYOUTS} for family in FAMILIES]
    columns = (
        Column("FAMILY", _get("name")),
        Column("ARCHITECTURE", lambda row: ", ".join(row["architectures"])),
        Column("KV", _get("kv")),
        Column("EXPERTS", _get("experts")),
        Column("WITH", _get("also")),
        Column("LAYOUTS", _get("layouts")),
    )
    return Listing("engine", rows, columns, _get("name"))


def nodes(fleet: FleetView) -> Listing:
    """Live nodes."""
    rows = [
        {
            "name": node.name,
            "address": node.address,
            "page_kind": node.page_kind,
            "agent_pid": node.agent_pid,
            "age_s": max(0.0, fleet.at - node.started_at),
            "devices": [to_plain(device) for device in node.devices],
        }
        for node in fleet.nodes
    ]
    columns = (
        Column("NAME", _get("name")),
        Column("ADDRESS", _get("address")),
        Column("DEVICES", lambda row: str(len(row["devices"])), right=True),
        Column("HBM", lambda row: format_bytes(sum(d["hbm_bytes"] for d in row["devices"]))),
        Column("PAGES", _get("page_kind")),
        Column("AGENT", _get("agent_pid"), right=True),
        Column("AGE", lambda row: format_age(row["age_s"]), right=True),
    )
    return Listing("node", rows, columns, _get("name"))


def models(fleet: FleetView) -> Listing:
    """Declared models with their five widths."""
    rows = [_model_row(model) for model in fleet.models]
    columns = (
        Column("NAME", _get("name")),
        Column("READY", _get("ready")),
        Column("EXPERTS", _experts, right=True),
        Column("EPOCH", lambda row: _of_status(row, "epoch"), right=True),
        Column("GENERATION", _generation, right=True),
        Column("RUNNING", lambda row: str(sum(s["running"] for s in row["stats"])), right=True),
        Column("CHANGE", lambda row: row["change"] or "-"),
        Column("MESSAGE", _get("message")),
    )
    layers = ("desired", "admitted", "allocated", "joined", "effective")
    more = [Column(word.upper(), _of_status_key(f"{word}_width"), right=True) for word in layers]
    return Listing("model", rows, columns, _get("name"), more)


def workers(fleet: FleetView) -> Listing:
    """One row for each worker of each model."""
    rows = [to_plain(worker) for model in fleet.models for worker in model.workers]
    columns = (
        Column("MODEL", _get("model")),
        Column("RANK", _get("rank"), right=True),
        Column("DEVICE", _get("device")),
        Column("STATE", _get("state")),
        Column("EPOCH", _get("epoch"), right=True),
        Column("INSTANCE", _get("instance"), right=True),
        Column("PID", _get("pid"), right=True),
        Column("ADDRESS", _get("address")),
        Column("MESSAGE", _get("message")),
    )
    return Listing("worker", rows, columns, lambda row: f"{row['model']}/{row['device']}")


def transitions(fleet: FleetView) -> Listing:
    """Changes of placements, running and past, newest last."""
    ordered = sorted(fleet.transitions, key=lambda t: (t.accepted_at, t.operation_id))
    rows = [to_plain(t) | {"age_s": max(0.0, fleet.at - t.accepted_at)} for t in ordered]
    columns = (
        Column("OPERATION", _get("operation_id")),
        Column("MODEL", _get("model")),
        Column("KIND", _get("kind")),
        Column("EXPERTS", lambda row: f"{row['from_width']} -> {row['to_width']}"),
        Column("PHASE", _get("phase")),
        Column("MOVED", lambda row: moved_text(row["prediction"], row["actual"])),
        Column("TOOK", lambda row: took_text(row["phase_at"], row["accepted_at"]), right=True),
        Column("AGE", lambda row: format_age(row["age_s"]), right=True),
        Column("REASON", _get("reason")),
    )
    return Listing("transition", rows, columns, _get("operation_id"))


def events(fleet: FleetView) -> Listing:
    """What happened lately, oldest first."""
    ordered = sorted(fleet.events, key=lambda event: (event.at, event.id))
    rows = [to_plain(event) | {"age_s": max(0.0, fleet.at - event.at)} for event in ordered]
    columns = (
        Column("AGE", lambda row: format_age(row["age_s"]), right=True),
        Column("SEVERITY", _get("severity")),
        Column("SUBJECT", _get("subject")),
        Column("REASON", _get("reason")),
        Column("MESSAGE", _get("message")),
    )
    return Listing("event", rows, columns, _get("id"))


def pages(fleet: FleetView) -> Listing:
    """What holds the HBM of each device."""
    rows = [
        {"device": device.name, "usage": to_plain(device.usage) if device.usage else None}
        for node in fleet.nodes
        for device in node.devices
    ]
    parts = ("experts", "shared", "kv", "adapters")
    columns = (
        Column("DEVICE", _get("device")),
        Column("PAGE", lambda row: _of_usage(row, "page_bytes", as_bytes=True), right=True),
        Column("TOTAL", lambda row: _of_usage(row, "total"), right=True),
        Column("FREE", lambda row: _of_usage(row, "free"), right=True),
        Column("RESERVED", lambda row: _of_usage(row, "reserved"), right=True),
        *(Column(part.upper(), _used(part), right=True) for part in parts),
        Column("TOUCHED", _touched, right=True),
    )
    return Listing("device", rows, columns, _get("device"))


def moved_text(prediction: Mapping[str, Any], actual: Mapping[str, float]) -> str:
    """Expert bytes moved, or predicted while they are not known."""
    planned = format_bytes(int(prediction.get("bytes_moved", 0)))
    done = actual.get("bytes_moved", actual.get("bytes_copied"))
    return planned if done is None else f"{format_bytes(int(done))} of {planned}"


def took_text(phase_at: Mapping[str, float], accepted_at: float) -> str:
    """Seconds from the intent to the end, or nothing while it runs."""
    end = phase_at.get("done") or phase_at.get("forfeited")
    return f"{end - accepted_at:.2f} s" if end else "-"


def format_age(seconds: float) -> str:
    """An age in the largest whole unit, as kubectl shows it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def change_text(transition: TransitionView | None) -> str:
    """A running change in a few words."""
    if transition is None:
        return ""
    widths = f"{transition.from_width} -> {transition.to_width}"
    return f"{transition.kind} {widths}: {transition.phase}"


def _model_row(model: ModelView) -> dict[str, Any]:
    ready = next(
        (c for c in (model.status.conditions if model.status else ()) if c.type == "Ready"), None
    )
    return {
        "name": model.name,
        "generation": model.generation,
        "ready": str(ready.status) if ready else "Unknown",
        "message": ready.message if ready else "not observed yet",
        "change": change_text(model.active),
        "spec": dict(model.spec),
        "status": to_plain(model.status),
        "workers": [to_plain(worker) for worker in model.workers],
        "stats": [to_plain(stats) for stats in model.stats],
    }


def _experts(row: Row) -> str:
    """The widths, and whether the planner chose them."""
    auto = row["spec"].get("parallelism", {}).get("experts") == "auto"
    return _widths(row["status"]) + (" auto" if auto else "")


def _widths(status: Mapping[str, Any] | None) -> str:
    """Effective width, and the desired one while they differ."""
    if status is None:
        return "?"
    effective, desired = status["effective_width"], status["desired_width"]
    return str(effective) if effective == desired else f"{effective} -> {desired}"


def _generation(row: Row) -> str:
    seen = row["status"]["observed_generation"] if row["status"] else "?"
    return str(seen) if seen == row["generation"] else f"{seen} of {row['generation']}"


def _of_status(row: Row, key: str) -> str:
    return str(row["status"][key]) if row["status"] else "?"


def _of_status_key(key: str) -> Callable[[Row], str]:
    return lambda row: _of_status(row, key)


def _of_usage(row: Row, key: str, *, as_bytes: bool = False) -> str:
    if row["usage"] is None:
        return "?"
    value = row["usage"][key]
    return format_bytes(value) if as_bytes else str(value)


def _touched(row: Row) -> str:
    """Pages with memory behind them, and while more are touched ahead, that it goes on."""
    usage = row["usage"]
    if usage is None or usage["touched"] < 0:
        return "?"
    is_going_on = usage["pretouch"] not in ("", "off", "done")
    return f"{usage['touched']}{'+' if is_going_on else ''}"


def _used(part: str) -> Callable[[Row], str]:
    return lambda row: "?" if row["usage"] is None else str(row["usage"]["used"].get(part, 0))


def _get(key: str) -> Callable[[Row], str]:
    return lambda row: str(row[key])
