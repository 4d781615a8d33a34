"""How is a scale told to a person? Its plan before, its phases during, predicted against actual
after.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import UsageError
from ..core.units import format_bytes
from .fleet_view import FleetView, TransitionView
from .progress import Progress

AUTO_OPTIONS_SHOWN = 16
PHASES = ("prepare", "commit", "retire", "done")
WORDS = {
    "prepare": "PREPARE  new workers, group and windows, while the old epoch serves",
    "commit": "COMMIT   all ranks flip at one step",
    "retire": "RETIRE   old pages return to the pool",
    "forfeit": "FORFEIT  undoing; the old epoch serves on",
}


def check_width_text(text: str) -> str:
    """`N`, `+K`, `-K` or `auto` as given; raises UsageError on anything else."""
    if not re.fullmatch(r"[+-]?[1-9][0-9]{0,5}|auto", text):
        raise UsageError(
            f"--experts {text}: not a width",
            next_step="give a number of devices such as 4, a change such as +2 or -1, or auto",
        )
    return text


def plan_lines(answer: Mapping[str, Any]) -> list[str]:
    """What the controller says it will do, and of `auto` what the planner chose."""
    plan = answer.get("plan")
    auto = auto_lines(answer)
    if answer.get("unchanged") and not plan:
        there = f"{answer.get('model')} is spread over {answer.get('to_width')} devices already"
        taken = answer.get("taken")
        return [
            *auto,
            there,
            *([f"{taken} is yours now; `moectl release` gives it back"] if taken else []),
        ]
    if not plan:
        return [*auto, f"stays on {answer.get('to_width')} devices"]
    prediction = plan.get("prediction", plan)
    lines = [
        *auto,
        f"moves {format_bytes(int(prediction['bytes_moved']))} of experts "
        f"(the least possible is {format_bytes(int(prediction['bytes_lower_bound']))}), "
        f"{int(prediction['steps_cross_node'])} steps cross nodes",
        f"predicted: {prediction['prepare_s']:.1f} s to prepare, "
        f"pause {prediction['pause_ms']:.1f} ms",
    ]
    shared = int(prediction.get("shared_bytes_moved", 0))
    if shared:
        lines.insert(
            len(auto) + 1, f"joining devices also load {format_bytes(shared)} of other weights"
        )
    return lines


def auto_lines(answer: Mapping[str, Any]) -> list[str]:
    """Which width `auto` picks, why, and every width that was weighed; nothing without `auto`."""
    auto = answer.get("auto")
    if not auto:
        return []
    lines = [f"auto picks {auto['width']} ({auto['reason']}): {auto['message']}"]
    for option in auto["options"][:AUTO_OPTIONS_SHOWN]:
        told = option["refusal"] or (
            f"{option['rate']:.3g} requests/s, TPOT {option['tpot_s'] * 1e3:.3g} ms,"
            f" TTFT {option['ttft_s'] * 1e3:.3g} ms at {option['batch']} requests a rank"
        )
        mark = "*" if option["width"] == auto["width"] else " "
        lines.append(f"  {mark} {option['width']:3} devices: {told}")
    hidden = len(auto["options"]) - AUTO_OPTIONS_SHOWN
    return lines + ([f"    and {hidden} more; -o json shows all"] if hidden > 0 else [])


def is_settled(fleet: FleetView, answer: Mapping[str, Any]) -> bool:
    """Whether an accepted scale asks for what is there: then there is no transition to wait for.

    An answer with a plan has work ahead, also when somebody else asked for it first and the loop
    has not begun.
    """
    model = fleet.model(str(answer.get("model")))
    is_there = bool(answer.get("unchanged") or answer.get("settled")) and not answer.get("plan")
    return is_there and (model is None or model.active is None)


def tell_phases(progress: Progress) -> Callable[[TransitionView], None]:
    """A reporter that shows each phase as a part."""
    shown: list[str] = []

    def tell(transition: TransitionView) -> None:
        for phase in ("prepare", "commit", "retire", "forfeit"):
            if phase in transition.phase_at and phase not in shown:
                _end_last(progress, shown)
                shown.append(phase)
                progress.start(WORDS[phase])
        if transition.is_over:
            _end_last(progress, shown, "fail" if transition.phase == "forfeited" else "ok")

    return tell


def _end_last(progress: Progress, shown: list[str], outcome: str = "ok") -> None:
    if shown:
        progress.end(WORDS[shown[-1]], outcome)


def ready_s(transition: TransitionView) -> float | None:
    """Seconds from the intent until the new width served; None when it never did."""
    flipped = transition.phase_at.get("retire")
    return None if flipped is None else flipped - transition.accepted_at


def bytes_moved(transition: TransitionView) -> float | None:
    """Expert bytes that the agents say were copied or loaded; None when they have not said."""
    actual = transition.actual
    return actual.get("bytes_moved", actual.get("bytes_copied"))


def summary_lines(transition: TransitionView) -> list[str]:
    """Predicted against actual, once it is over."""
    prediction, actual = transition.prediction, transition.actual
    moved = bytes_moved(transition)
    prepared = _between(transition, "prepare", "commit")
    rows = [
        ("", "predicted", "actual"),
        ("expert bytes", format_bytes(int(prediction["bytes_moved"])), _bytes(moved)),
        ("prepare", f"{prediction['prepare_s']:.2f} s", _seconds(prepared)),
        ("pause", f"{prediction['pause_ms']:.1f} ms", _milliseconds(actual.get("pause_ms"))),
        ("serving after", "", _seconds(ready_s(transition))),
        *_moved_requests(actual),
    ]
    widths = f"{transition.from_width} -> {transition.to_width} devices"
    head = f"{transition.model}: {widths}, {transition.phase}"
    return [head, *(f"  {name:14} {left:>12} {right:>12}".rstrip() for name, left, right in rows)]


def _moved_requests(actual: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """What became of the requests of ranks that left; nothing when none had any."""
    moved, replayed = (int(actual.get(f"requests_{word}", 0)) for word in ("moved", "replayed"))
    if not moved + replayed:
        return []
    return [
        ("moved with KV", "", f"{moved} requests"),
        ("replayed", "", f"{replayed} requests"),
        ("KV moved", "", _bytes(actual.get("kv_moved_bytes"))),
    ]


def _between(transition: TransitionView, first: str, second: str) -> float | None:
    times = transition.phase_at
    return times[second] - times[first] if first in times and second in times else None


def _bytes(value: float | None) -> str:
    return "unknown" if value is None else format_bytes(int(value))


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} s"


def _milliseconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} ms"
