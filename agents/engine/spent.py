"""Where did each request's time go on this rank? Told to its gateway with the end of the request.

A request has four moments: it arrives, its first row runs, its first token comes, it ends. Between
them lie queue, prefill and decode; what its steps spent in exchanges with other ranks is taken out
of the last two and told apart. Times are milliseconds. Never decides anything, and costs a step one
look-up per request.
"""

from dataclasses import dataclass

from .progress import StepPlan


@dataclass(slots=True)
class _Account:
    arrived_s: float
    began_s: float | None = None
    first_s: float | None = None
    exchanged_at_begin_s: float = 0.0
    exchanged_at_first_s: float = 0.0
    cached_tokens: int = 0
    is_moved: bool = False  # its prompt was read on another rank, which told what of it was cached


class Accounts:
    """Accounts of the requests that are here. `arrive` may be called from any thread."""

    def __init__(self) -> None:
        self._open: dict[str, _Account] = {}
        self._exchanged_s = 0.0  # by all steps so far

    def arrive(self, request_id: str, now: float, is_moved: bool = False) -> None:
        """A request is taken in, or comes from another rank with its KV."""
        self._open[request_id] = _Account(now, is_moved=is_moved)

    def plan(self, plan: StepPlan, now: float) -> None:
        """These rows run next; what of a prompt is not in the first of them came from the cache."""
        for item in plan.items:
            account = self._open.get(item.sequence.request.id)
            if account is not None and account.began_s is None:
                account.began_s = now
                account.exchanged_at_begin_s = self._exchanged_s
                account.cached_tokens = min(item.start, len(item.sequence.request.prompt_ids))

    def exchanged(self, seconds: float) -> None:
        """A step spent so long in exchanges."""
        self._exchanged_s += seconds

    def token(self, request_id: str, now: float) -> None:
        """A token of a request came."""
        account = self._open.get(request_id)
        if account is not None and account.first_s is None:
            account.first_s = now
            account.exchanged_at_first_s = self._exchanged_s

    def close(self, request_id: str, now: float) -> dict[str, float] | None:
        """The account of a request that ended; None when none was opened."""
        account = self._open.pop(request_id, None)
        if account is None:
            return None
        began, begun_x = account.began_s, account.exchanged_at_begin_s
        if began is None:  # it never ran
            began, begun_x = now, self._exchanged_s
        first, first_x = account.first_s, account.exchanged_at_first_s
        if first is None:
            first, first_x = now, self._exchanged_s
        told = {
            "queue_ms": _ms(began - account.arrived_s),
            "prefill_ms": _ms(first - began - (first_x - begun_x)),
            "decode_ms": _ms(now - first - (self._exchanged_s - first_x)),
            "exchange_ms": _ms(self._exchanged_s - begun_x),
        }
        return told if account.is_moved else told | {"cached_tokens": account.cached_tokens}


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1e3, 3)
