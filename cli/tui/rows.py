"""Which rows do the tables of the screen show? Fleet, models, workers and events as text. Pure."""

from dataclasses import dataclass

from ...core.records import EventRecord
from ..fleet_view import FleetView, ModelView
from ..listings import change_text, format_age

STATE_STYLES = {
    "serving": "good",
    "prepared": "busy",
    "starting": "busy",
    "leaving": "busy",
    "parked": "bad",
    "lost": "bad",
    "stopped": "dim",
}
SEVERITY_STYLES = {"info": "dim", "warning": "busy", "error": "bad"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of text and what it means: "", "good", "busy", "bad", "dim" or "strong"."""

    text: str
    style: str = ""


Row = tuple[Cell, ...]


def headline(fleet: FleetView) -> str:
    """The fleet in one line."""
    devices = sum(len(node.devices) for node in fleet.nodes)
    missing = f" · MISSING {', '.join(fleet.missing_nodes)}" if fleet.missing_nodes else ""
    return f"{fleet.cluster} · {len(fleet.nodes)} nodes · {devices} devices{missing}"


def model_line(model: ModelView) -> Row:
    """One model: name, readiness, widths, what is going on."""
    ready = "Ready" if model.is_ready else "not Ready"
    status = model.status
    widths = "?" if status is None else f"{status.effective_width} of {status.desired_width}"
    change = change_text(model.active)
    return (
        Cell(model.name, "strong"),
        Cell(ready, "good" if model.is_ready else "bad"),
        Cell(f"experts on {widths}"),
        Cell(f"epoch {status.epoch}" if status else "", "dim"),
        Cell(change, "busy"),
    )


def worker_rows(model: ModelView | None) -> tuple[Row, ...]:
    """The workers of a model, one row each: rank, device, state, requests, KV, step."""
    if model is None:
        return ()
    stats = {(s.rank, s.epoch): s for s in model.stats}
    rows = []
    for worker in model.workers:
        own = stats.get((worker.rank, worker.epoch))
        kv = f"{100 * own.kv_blocks_used // max(1, own.kv_blocks_total)}%" if own else "-"
        rows.append(
            (
                Cell(str(worker.rank)),
                Cell(str(worker.device)),
                Cell(str(worker.state), STATE_STYLES.get(str(worker.state), "")),
                Cell(f"{own.running}+{own.waiting}" if own else "-"),
                Cell(kv),
                Cell(f"{own.step_ms_p50:.1f}" if own else "-"),
            )
        )
    return tuple(rows)


WORKER_TITLES = ("#", "DEVICE", "STATE", "REQ", "KV", "MS")


def event_rows(fleet: FleetView, limit: int) -> tuple[Row, ...]:
    """The newest events first."""
    ordered = sorted(fleet.events, key=lambda e: (e.at, e.id), reverse=True)[:limit]
    return tuple(_event_row(event, fleet.at) for event in ordered)


def _event_row(event: EventRecord, now: float) -> Row:
    return (
        Cell(format_age(max(0.0, now - event.at)).rjust(4), "dim"),
        Cell(event.reason, SEVERITY_STYLES.get(event.severity, "")),
        Cell(event.subject, "dim"),
        Cell(event.message),
    )
