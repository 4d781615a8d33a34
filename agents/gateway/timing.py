"""Where did a request's time go? Phases that do not overlap and add up to the whole.

    queue     waiting for a worker, and in the worker's queue
    prefill   reading the prompt, up to the first token
    decode    the steps after it
    exchange  the part of those steps that waited for other ranks
    stream    the rest: checking, tokenizing, the wires, and a client that reads slowly

The worker keeps its own account and tells it with the end of a request. Without it (the connection
broke, or a stop string ended the request early) prefill and decode are what was seen from here, and
that account's exchange is inside them. Pure: times are arguments, in seconds of one clock.
"""

from dataclasses import dataclass, field
from typing import Any

PHASES = ("queue", "prefill", "decode", "exchange", "stream")
_TOLD = {"queue": "queue_ms", "prefill": "prefill_ms", "decode": "decode_ms"}
_TOLD["exchange"] = "exchange_ms"


@dataclass(slots=True)
class Timeline:
    """The account of one generation, over all its attempts."""

    phases_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    cached_tokens: int = 0  # of the prompt, taken from the worker's prefix cache
    _sent_s: float = 0.0
    _first_s: float | None = None
    _last_s: float = 0.0

    def waited(self, seconds: float) -> None:
        """No worker could take it for so long."""
        self.phases_s["queue"] += seconds

    def sent(self, now: float) -> None:
        """An attempt begins: submitted to a worker."""
        self._sent_s, self._first_s, self._last_s = now, None, now

    def tokens_came(self, now: float) -> None:
        """New tokens are here."""
        if self._first_s is None:
            self._first_s = now
        self._last_s = now

    def ended(self, now: float, told: dict[str, Any]) -> None:
        """The attempt is over; `told` is the worker's account or empty."""
        account = {phase: _seconds(told.get(key)) for phase, key in _TOLD.items()}
        cached = told.get("cached_tokens")
        if cached is not None:  # a worker to which it moved has read nothing of the prompt
            self.cached_tokens = cached if isinstance(cached, int) and cached > 0 else 0
        if all(value is None for value in account.values()):
            if self._first_s is None:  # refused, or lost before it began: that was waiting
                account = {"queue": now - self._sent_s}
            else:
                first = self._first_s
                account = {"prefill": first - self._sent_s, "decode": self._last_s - first}
        for phase, value in account.items():
            self.phases_s[phase] += value or 0.0

    def breakdown(self, total_s: float) -> dict[str, float]:
        """Milliseconds per phase and `total_ms`; what is in no other phase is the stream's."""
        known = {phase: self.phases_s[phase] for phase in PHASES if phase != "stream"}
        phases = known | {"stream": max(total_s - sum(known.values()), 0.0)}
        plain = {f"{phase}_ms": round(phases[phase] * 1e3, 3) for phase in PHASES}
        return plain | {"total_ms": round(total_s * 1e3, 3)}

    @property
    def total_s(self) -> float:
        """All phases so far."""
        return sum(self.phases_s.values())


def _seconds(value: Any) -> float | None:
    """A worker's milliseconds; nonsense counts as not told."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value / 1e3 if is_number and 0 <= value < 1e9 else None
