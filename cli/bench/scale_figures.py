"""What do the traces of a scale say? The keys of the scale bench from windows and arrivals. Pure.

"Ready" is the instant at which the first step with all ranks at the new epoch was over; "during"
is from the accepted intent to the commit's end, "around" from the intent to the retired pages.
"""

import statistics
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


def by_name(acts: Sequence[Act]) -> dict[str, list[Act]]:
    """The same change of width, measured once or often: one case."""
    cases: dict[str, list[Act]] = {}
    for act in acts:
        name = f"{act.transition.from_width}->{act.transition.to_width}"
        cases.setdefault(name, []).append(act)
    return cases


def row_of(
    acts: Sequence[Act],
    traces: Sequence[Trace],
    samples: Sequence[residency.Sample],
    sizes: Bytes,
) -> dict[str, float]:
    """All keys of one change of width, over all times that it was made.

    Times to be ready are medians (and the largest), rates are tokens over seconds of all windows
    together, gaps, peaks and losses are the worst.
    """
    ready = [ready_s(act.transition) for act in acts]
    done = [a.transition.phase_at.get("done", 0.0) - a.transition.accepted_at for a in acts]
    first = acts[0]
    moved, bound = _moved(first), float(first.transition.prediction["bytes_lower_bound"])
    return {
        "times": len(acts),
        "ready_s": statistics.median(ready),
        "ready_s_max": max(ready),
        "done_s": statistics.median(done),
        **_rates(acts, traces),
        **_gaps(acts, traces),
        "failed": sum(metrics.failures_in(traces, transition_window(a.transition)) for a in acts),
        "bytes_moved": int(moved),
        "bytes_lower_bound": int(bound),
        "bytes_ratio": max(_bytes_ratio(act) for act in acts),
        "peak_bytes_ratio": max(
            _peak(act, transition_window(act.transition), samples, sizes) for act in acts
        ),
        "kv_blocks_before": sum(first.kv_before.values()),
        "kv_blocks_after": sum(first.kv_after.values()),
        "kv_recovered": min(recovered(act, sizes) for act in acts),
    }


def _moved(act: Act) -> float:
    told = bytes_moved(act.transition)
    return float(act.transition.prediction["bytes_moved"]) if told is None else told


def _bytes_ratio(act: Act) -> float:
    bound = float(act.transition.prediction["bytes_lower_bound"])
    return _over(_moved(act), bound) if bound else 1.0


def _during(act: Act) -> Window:
    accepted = act.transition.accepted_at
    return Window(accepted, accepted + ready_s(act.transition))


def _rates(acts: Sequence[Act], traces: Sequence[Trace]) -> dict[str, float]:
    """Tokens a second before, during and after."""
    before = metrics.pooled_tokens_per_second(traces, [act.before for act in acts])
    during = metrics.pooled_tokens_per_second(traces, [_during(act) for act in acts])
    after = metrics.pooled_tokens_per_second(traces, [act.after for act in acts])
    return {
        "tokens_per_s_before": before,
        "tokens_per_s_during": during,
        "tokens_per_s_after": after,
        "throughput_during_over_before": _over(during, before),
    }


def _gaps(acts: Sequence[Act], traces: Sequence[Trace]) -> dict[str, float]:
    """The longest gaps around, beside the steady ones of the slower of the two widths."""
    around = [transition_window(act.transition) for act in acts]
    longest = [
        max(metrics.longest_gap_ms(traces, window, replayed=replayed) for window in around)
        for replayed in (False, True)
    ]
    sides = [[act.before for act in acts], [act.after for act in acts]]
    steady = max(metrics.pooled_p99_ms(traces, windows) for windows in sides)
    return {
        "longest_gap_ms": longest[0],
        "longest_replay_gap_ms": longest[1],
        "steady_p99_itl_ms": steady,
        "gap_over_p99": _over(max(longest), steady),
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
    added = {"failed", "bytes_moved", "bytes_lower_bound", "times"}
    out: dict[str, float] = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows]
        out[key] = sum(values) if key in added else min(values) if key in low else max(values)
    return out


def _over(value: float, base: float) -> float:
    return value / base if base else 0.0
