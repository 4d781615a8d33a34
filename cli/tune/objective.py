"""What is better, and when does a winner really beat the settings in force? Pure.

Better is more tokens per second among the settings that keep the limits; settings that break one
rank below all that do not, by how far they break it.

A winner of a search has been lucky too: the best of forty noisy figures is too good. So it is
measured again, in alternation with the present settings, and only these pairs count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

from .measure import Measured, Track, percentile

#: A winner must be this much faster in the median pair: less is not worth a restart of a model.
GAIN_MIN = 0.02
#: The chance of so many pairs won if nothing were better. One in twenty, the usual threshold.
CHANCE_MAX = 0.05
#: With fewer pairs not even winning all of them would be less likely than CHANCE_MAX.
PAIRS_MIN = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What users are owed, at the 95th percentile, in seconds; None: no limit."""

    ttft_s: float | None = None
    itl_s: float | None = None

    def excess(self, ttft_p95_s: float, itl_p95_s: float) -> float:
        """By how much of itself the most broken limit is broken; 0 when all are kept."""
        pairs = ((ttft_p95_s, self.ttft_s), (itl_p95_s, self.itl_s))
        return max([0.0, *(found / limit - 1 for found, limit in pairs if limit)])

    def excess_of(self, run: Measured) -> float:
        """The same of a run."""
        return self.excess(run.ttft_p95, run.itl_p95)


def partial_score(track: Track, clock_s: float, limits: Limits) -> float:
    """How a run goes that is not over: work per second, and next to nothing when it breaks a limit.

    Work counts prompt tokens too, so that settings that read prompts first are not behind.
    """
    first, gaps = sorted(track.first_s) or [0.0], sorted(track.gaps_s) or [0.0]
    excess = limits.excess(percentile(first, 0.95), percentile(gaps, 0.95))
    rate = track.done / clock_s
    return rate * 1e-3 / (1 + excess) if excess else rate


@dataclass(frozen=True, slots=True)
class Pair:
    """The present settings and the winner, one after the other."""

    baseline: Measured
    winner: Measured

    @property
    def ratio(self) -> float:
        """Tokens per second of the winner over those of the baseline."""
        return self.winner.tokens_per_s / self.baseline.tokens_per_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the winner beats the settings in force, with the numbers that say so."""

    beats: bool
    reason: str
    pairs: int
    wins: int
    wins_needed: int
    ratio_min: float
    ratio_median: float
    ratio_max: float


def wins_needed(pairs: int) -> int:
    """The least number of won pairs whose chance, at even odds, is at most CHANCE_MAX."""
    chance, needed = 0.0, pairs + 1
    while needed > 0 and chance + comb(pairs, needed - 1) / 2**pairs <= CHANCE_MAX:
        needed -= 1
        chance += comb(pairs, needed) / 2**pairs
    return needed


def judge(pairs: Sequence[Pair], limits: Limits) -> Verdict:
    """The rule of docs/tuning.md. `pairs` has at least PAIRS_MIN members."""
    ratios = sorted(pair.ratio for pair in pairs)
    wins, needed = sum(ratio > 1 for ratio in ratios), wins_needed(len(pairs))
    middle = median(ratios)
    kept = [limits.excess_of(pair.winner) == 0 for pair in pairs]
    broken = [limits.excess_of(pair.baseline) > 0 for pair in pairs]
    beats, reason = _decide(wins >= needed, middle, sum(kept) >= needed, sum(broken) >= needed)
    return Verdict(beats, reason, len(pairs), wins, needed, ratios[0], middle, ratios[-1])


def _decide(is_surer: bool, middle: float, keeps: bool, present_breaks: bool) -> tuple[bool, str]:
    if not keeps:
        return False, "the winner does not keep the limits when measured again"
    if present_breaks:
        return True, "the winner keeps the limits, the present settings do not"
    if not is_surer:
        return False, "too few pairs were won: the difference may be noise"
    if middle < 1 + GAIN_MIN:
        return False, f"the gain of {middle - 1:.1%} is below {GAIN_MIN:.0%}"
    return True, "faster, within the limits"


def plain_measured(run: Measured) -> dict[str, Any]:
    """A run as plain numbers: times in milliseconds."""
    return {
        "tokens_per_s": round(run.tokens_per_s, 2),
        "ttft_p50_ms": round(run.ttft_p50 * 1e3, 3),
        "ttft_p95_ms": round(run.ttft_p95 * 1e3, 3),
        "itl_p50_ms": round(run.itl_p50 * 1e3, 3),
        "itl_p95_ms": round(run.itl_p95 * 1e3, 3),
        "running": round(run.running, 3),
        "steps": run.steps,
        "preemptions": run.preemptions,
    }
