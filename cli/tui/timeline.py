"""How far is a change, and did it do what was predicted? Transitions as lines. Pure."""

from dataclasses import dataclass

from ...core.units import format_bytes
from ..fleet_view import FleetView, TransitionView
from ..scaling import bytes_moved, ready_s

ORDER = ("prepare", "commit", "retire")
ENDS = {"prepare": "commit", "commit": "retire", "retire": "done"}


@dataclass(frozen=True, slots=True)
class PhaseLine:
    """One phase: "done", "running", "waiting" or "undone", with its seconds so far."""

    name: str
    state: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure, predicted and actual, as text."""

    name: str
    predicted: str
    actual: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """A transition as shown."""

    title: str
    phase: str
    phases: tuple[PhaseLine, ...]
    figures: tuple[Comparison, ...]
    reason: str


def newest_transition(fleet: FleetView, model: str | None) -> TransitionView | None:
    """The running transition of a model, else its last one."""
    own = [t for t in fleet.transitions if model is None or t.model == model]
    view = fleet.model(model) if model else None
    if view is not None and view.active is not None:
        return view.active
    return max(own, key=lambda t: (t.accepted_at, t.operation_id), default=None)


def timeline(transition: TransitionView, now: float) -> Timeline:
    """The lines of one transition at a time of the controller's clock."""
    widths = f"{transition.from_width} → {transition.to_width}"
    return Timeline(
        title=f"{transition.model} {transition.kind} {widths}",
        phase=transition.phase,
        phases=tuple(_phase(transition, name, now) for name in ORDER),
        figures=_figures(transition),
        reason=transition.reason,
    )


def _phase(transition: TransitionView, name: str, now: float) -> PhaseLine:
    start = transition.phase_at.get(name)
    if start is None:
        return PhaseLine(name, "waiting", None)
    undone = transition.phase_at.get("forfeit")
    end = transition.phase_at.get(ENDS[name], undone)
    if end is None:
        return PhaseLine(name, "running", max(0.0, now - start))
    return PhaseLine(name, "undone" if undone is not None else "done", end - start)


def _figures(transition: TransitionView) -> tuple[Comparison, ...]:
    prediction, actual = transition.prediction, transition.actual
    moved, pause, ready = bytes_moved(transition), actual.get("pause_ms"), ready_s(transition)
    return (
        Comparison(
            "moved",
            format_bytes(int(prediction.get("bytes_moved", 0))),
            "-" if moved is None else format_bytes(int(moved)),
        ),
        Comparison(
            "ready",
            f"{prediction.get('prepare_s', 0.0):.2f} s",
            "-" if ready is None else f"{ready:.2f} s",
        ),
        Comparison(
            "pause",
            f"{prediction.get('pause_ms', 0.0):.1f} ms",
            "-" if pause is None else f"{pause:.1f} ms",
        ),
    )
