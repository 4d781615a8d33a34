"""What do the traces of a scale say? The keys of the scale bench from windows and arrivals. Pure.

"Ready" is the instant at which the first step with all ranks at the new epoch was over; "during"
is from the accepted intent to the commit's end, "around" from the intent to the retired pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..demo import metrics, residency
from ..demo.metrics import Trace, Window
from ..demo.scenario import transition_window
from ..fleet_view import TransitionView
from ..scaling import bytes_moved
from ..scaling import ready_s as phase_ready_s


@dataclass(frozen=True, slots=True)
class Act:
    """One measured scale: the quiet times around it, and KV blocks by device."""

    transition: TransitionView
    before: Window
    after: Window
    kv_before: Mapping[str, int]
    kv_after: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Bytes:
    """What one expert and one KV block take on a device, pages counted whole."""

    expert: int
    kv_block: int


def ready_s(transition: TransitionView) -> float:
    """Seconds from the accepted intent to the new epoch's first step."""
    told = transition.actual.get("ready_s")
    return float(told if told is not None else (phase_ready_s(transition) or 0.0))


def row_of(
    act: Act, traces: Sequence[Trace], samples: Sequence[residency.Sample], sizes: Bytes
) -> dict[str, float]:
    """All keys of one scale."""
    transition = act.transition
    around = transition_window(transition)
    during = Window(transition.accepted_at, transition.accepted_at + ready_s(transition))
    before = metrics.tokens_per_second(traces, act.before)
    gaps = [metrics.longest_gap_ms(traces, around, replayed=r) for r in (False, True)]
    steady = max(metrics.steady_p99_ms(traces, each) for each in (act.before, act.after))
    moved = bytes_moved(transition)
    bound = float(transition.prediction["bytes_lower_bound"])
    moved = float(transition.prediction["bytes_moved"]) if moved is None else moved
    return {
        "ready_s": ready_s(transition),
        "done_s": transition.phase_at.get("done", 0.0) - transition.accepted_at,
        "tokens_per_s_before": before,
        "tokens_per_s_during": metrics.tokens_per_second(traces, during),
        "tokens_per_s_after": metrics.tokens_per_second(traces, act.after),
        "throughput_during_over_before": _over(metrics.tokens_per_second(traces, during), before),
        "longest_gap_ms": gaps[0],
        "longest_replay_gap_ms": gaps[1],
        "steady_p99_itl_ms": steady,
        "gap_over_p99": _over(max(gaps), steady),
        "failed": metrics.failures_in(traces, around),
        "bytes_moved": int(moved),
        "bytes_lower_bound": int(bound),
        "bytes_ratio": _over(moved, bound) if bound else 1.0,
        "peak_bytes_ratio": _peak(act, around, samples, sizes),
        "kv_blocks_before": sum(act.kv_before.values()),
        "kv_blocks_after": sum(act.kv_after.values()),
        "kv_recovered": recovered(act, sizes),
    }


def recovered(act: Act, sizes: Bytes) -> float:
    """Share of the expert bytes freed on devices of both widths that are KV blocks now.

    1.0 for a scale that frees nothing there.
    """
    stay = [device for device in act.kv_before if device in act.kv_after]
    grown = sum(act.kv_after[d] - act.kv_before[d] for d in stay) * sizes.kv_block
    # On growing, everything that moved came from devices that stay.
    is_wider = act.transition.to_width > act.transition.from_width
    freed = float(act.transition.prediction["bytes_moved"]) if is_wider else 0.0
    return max(grown, 0) / freed if freed else 1.0


def _peak(act: Act, around: Window, samples: Sequence[residency.Sample], sizes: Bytes) -> float:
    """Peak bytes, less one staging expert per device, over the larger steady state around it.

    Bytes are all that the model holds: experts, other weights and KV.
    """
    inside = [s.expert_bytes for s in samples if around.start <= s.at <= around.end]
    outside = [s.expert_bytes for s in samples if s.at < around.start][-1:]
    outside += [s.expert_bytes for s in samples if s.at > around.end][:1]
    steady = max(outside, default=0)
    if not steady:
        return 0.0
    devices = max(act.transition.from_width, act.transition.to_width)
    return max(steady, max(inside, default=0) - devices * sizes.expert) / steady


def worst(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The worst of each key over cases."""
    low = {"throughput_during_over_before", "kv_recovered", "tokens_per_s_during"}
    added = {"failed", "bytes_moved", "bytes_lower_bound"}
    out: dict[str, float] = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows]
        out[key] = sum(values) if key in added else min(values) if key in low else max(values)
    return out


def _over(value: float, base: float) -> float:
    return value / base if base else 0.0
