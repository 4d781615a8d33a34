"""How fast does the fleet serve? Rates from counters of successive snapshots. Pure; time is in
them.
"""

from dataclasses import dataclass, replace

from ..fleet_view import FleetView, ModelView

POINTS_MAX = 120  # two minutes at one report a second


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of all workers of a model at one time; a restarted worker starts from zero."""

    at: float
    tokens: dict[str, int]  # worker -> tokens out


@dataclass(frozen=True, slots=True)
class Rates:
    """What the traffic panel shows; `history` is tokens a second, oldest first."""

    running: int = 0
    waiting: int = 0
    step_ms_p50: float = 0.0
    step_ms_p99: float = 0.0
    kv_share: float = 0.0
    history: tuple[float, ...] = ()
    last: Totals | None = None

    @property
    def tokens_per_s(self) -> float:
        """The newest rate."""
        return self.history[-1] if self.history else 0.0


def advance(rates: Rates, fleet: FleetView, model: str | None) -> Rates:
    """The rates after one more snapshot."""
    view = fleet.model(model) if model else None
    if view is None:
        return Rates()
    totals = Totals(fleet.at, {_key(view, i): s.tokens_out for i, s in enumerate(view.stats)})
    now = _gauges(rates, view)
    if rates.last is None:
        return replace(now, last=totals)
    seconds = totals.at - rates.last.at
    if seconds < 0.5:  # workers report about once a second: a shorter span says nothing
        return replace(now, last=rates.last)
    rate = _tokens_since(rates.last, totals) / seconds
    return replace(now, last=totals, history=(*rates.history, rate)[-POINTS_MAX:])


def _key(view: ModelView, index: int) -> str:
    stats = view.stats[index]
    return f"{stats.rank}/{stats.device}"


def _tokens_since(before: Totals, after: Totals) -> int:
    total = 0
    for worker, tokens in after.tokens.items():
        old = before.tokens.get(worker, 0)
        total += tokens - old if tokens >= old else tokens
    return total


def _gauges(rates: Rates, view: ModelView) -> Rates:
    blocks = sum(s.kv_blocks_total for s in view.stats)
    return replace(
        rates,
        running=sum(s.running for s in view.stats),
        waiting=sum(s.waiting for s in view.stats),
        step_ms_p50=max((s.step_ms_p50 for s in view.stats), default=0.0),
        step_ms_p99=max((s.step_ms_p99 for s in view.stats), default=0.0),
        kv_share=sum(s.kv_blocks_used for s in view.stats) / blocks if blocks else 0.0,
    )
