"""How are hit-rate curves made, printed, drawn and kept? For `moectl trace replay`.

One run is one policy at one number of slots. The record kept for the planner holds the first
policy's hit rates beside those of Belady's MIN, which is always replayed for it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.curves import CurvePoint, HitRateCurve
from ..core.errors import RefusedError, UsageError
from ..memory.cache.catalogue import BOUND, NAMES, make_policy
from ..memory.cache.simulate import ReplayRules, replay
from ..memory.cache.trace import RoutingTrace
from .render import Column, Listing, check_format, print_listing

SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """One replay, in the numbers that are printed."""

    policy: str
    slots: int
    hit_rate: float
    loads: int
    hit_over_min: float
    gap_captured: float | None  # None where LRU already equals MIN
    decide_us: float


def run_policies(
    trace: RoutingTrace, asked: tuple[str, str], pool: str, protocol: str
) -> list[PolicyRun]:
    """Replay (policies, slots), both comma lists; LRU and MIN are replayed beside them."""
    names = list(NAMES) if asked[0] == "all" else [name.strip() for name in asked[0].split(",")]
    runs = []
    for slots in _slots(asked[1], trace, pool):
        rules = ReplayRules(slots, pool, protocol, timed=True)
        done = {
            name: replay(trace, make_policy(name, trace, slots), rules)
            for name in dict.fromkeys([*names, "lru", BOUND])
        }
        low, high = done["lru"].hit_rate, done[BOUND].hit_rate
        for name in names:
            run = done[name]
            gap = (run.hit_rate - low) / (high - low) if high > low else None
            runs.append(
                PolicyRun(
                    name,
                    slots,
                    run.hit_rate,
                    run.loads,
                    run.hit_rate / max(high, 1e-12),
                    gap,
                    run.decide_us,
                )
            )
    return runs


def _slots(asked: str, trace: RoutingTrace, pool: str) -> list[int]:
    if not asked:
        unit = len(trace.layers) if pool == "per-layer" else 1
        least = trace.k * unit
        values = {max(least, round(share * trace.objects / unit) * unit) for share in SHARES}
        return sorted(values)
    try:
        return sorted({int(value) for value in asked.split(",")})
    except ValueError as error:
        raise UsageError(f"--slots {asked}: not whole numbers with commas") from error


def print_runs(runs: Sequence[PolicyRun], output: str) -> None:
    """All runs on stdout."""
    if check_format(output) == "name":
        raise UsageError("-o name: replays have no names", next_step="use table, json or yaml")

    def number(key: str, digits: int) -> Column:
        def text(row: Any) -> str:
            return "-" if row[key] is None else f"{row[key]:.{digits}f}"

        return Column(key.upper().replace("_", " "), text, right=True)

    columns = [
        Column("SLOTS", lambda row: str(row["slots"]), right=True),
        Column("POLICY", lambda row: str(row["policy"])),
        number("hit_rate", 4),
        Column("LOADS", lambda row: str(row["loads"]), right=True),
        number("hit_over_min", 3),
        number("gap_captured", 3),
        number("decide_us", 1),
    ]
    rows = [asdict(run) for run in runs]
    print_listing(Listing("replay", rows, columns, lambda row: str(row["policy"])), output)


def curve_of(trace: RoutingTrace, runs: Sequence[PolicyRun], pool: str) -> HitRateCurve:
    """The record of the first policy's runs."""
    first = runs[0].policy
    if first == BOUND:
        raise RefusedError(
            "a curve of MIN is a bound, no policy can be planned with it",
            next_step="put a real policy first in --policy",
        )
    points = tuple(
        CurvePoint(run.slots, run.hit_rate, run.hit_rate / max(run.hit_over_min, 1e-12))
        for run in runs
        if run.policy == first
    )
    return HitRateCurve(
        trace.source,
        trace.model,
        first,
        pool,
        len(trace.layers),
        trace.experts_per_layer,
        trace.k,
        points,
    )


def draw_curves(trace: RoutingTrace, runs: Sequence[PolicyRun], path: Path) -> None:
    """Hit rate against slots, one line a policy, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(run.policy for run in runs):
        own = [run for run in runs if run.policy == name]
        style = "k--" if name == BOUND else "o-"
        axes.plot([r.slots for r in own], [r.hit_rate for r in own], style, label=name, ms=4)
    axes.set_xlabel(f"slots of {trace.objects} (layer, expert) objects")
    axes.set_ylabel("hit rate")
    axes.set_ylim(0, 1)
    axes.set_title(trace.source, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
