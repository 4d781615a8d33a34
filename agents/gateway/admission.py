"""Who may send a request, and how many may be held at once? Tokens, counted slots, a rate.

A bearer token is known only by its SHA-256 digest, as the store has it; neither is ever logged. The
counters bound what clients can make the gateway hold; beyond them the answer is 429 with an
estimate of when to come again. Time is an argument.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ...core.records import TokenRecord
from .api_errors import too_many, unauthorized

_SCHEME = "bearer "
ROLES = frozenset({"viewer", "operator", "admin"})
RETRY_AFTER_MAX_S = 30
_SMOOTHING = 0.1  # weight of the newest request in the mean time of one


def authenticate(header: str | None, tokens: Mapping[str, TokenRecord]) -> TokenRecord:
    """The token's record; raises ApiError 401. `header` is the Authorization header."""
    if not header or header[: len(_SCHEME)].lower() != _SCHEME:
        raise unauthorized("You didn't provide an API key: send Authorization: Bearer TOKEN")
    secret = header[len(_SCHEME) :].strip()
    record = tokens.get(hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest())
    if record is None or record.role not in ROLES:
        raise unauthorized("Incorrect API key provided")
    return record


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one gateway lets in; 0 requests a minute means no such limit."""

    total_max: int
    per_token_max: int
    per_minute_max: int = 0


@dataclass(slots=True)
class _Bucket:
    """Requests that a token may still send at once, refilled evenly."""

    left: float
    at: float


class Slots:
    """Requests held now, in all and by token, and how fast each token sends."""

    def __init__(self, allowance: Allowance, monotonic: Callable[[], float]) -> None:
        self._allowance = allowance
        self._monotonic = monotonic
        self._by_token: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}  # one per token that exists: bounded by the store
        self._mean_s = 1.0  # of how long a request holds its slot

    @property
    def held(self) -> int:
        """Requests held now."""
        return self._by_token.total()

    def headers(self, token_name: str) -> dict[str, str]:
        """Where the token stands, in OpenAI's rate limit headers (requests at once)."""
        limit = self._allowance.per_token_max
        left = max(limit - self._by_token[token_name], 0)
        return {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{0 if left else self._mean_s:.3f}s",
        }

    @contextlib.contextmanager
    def take(self, token_name: str) -> Iterator[None]:
        """Hold a slot for the time of a request; raises ApiError 429 when none is free."""
        allowance, mine = self._allowance, self._by_token[token_name]
        if self.held >= allowance.total_max:
            raise too_many(
                "the server holds as many requests as it can: try again soon",
                self._wait_s(self.held),
            )
        if mine >= allowance.per_token_max:
            raise too_many(f"this API key has {mine} requests running already", self._wait_s(mine))
        self._spend(token_name)
        started = self._monotonic()
        self._by_token[token_name] += 1
        try:
            yield
        finally:
            self._mean_s += _SMOOTHING * (self._monotonic() - started - self._mean_s)
            self._by_token[token_name] -= 1
            if not self._by_token[token_name]:
                del self._by_token[token_name]

    def _spend(self, token_name: str) -> None:
        per_minute, now = self._allowance.per_minute_max, self._monotonic()
        if not per_minute:
            return
        bucket = self._buckets.setdefault(token_name, _Bucket(per_minute, now))
        bucket.left = min(bucket.left + (now - bucket.at) * per_minute / 60, float(per_minute))
        bucket.at = now
        if bucket.left < 1:
            wait_s = (1 - bucket.left) * 60 / per_minute
            message = f"this API key may send {per_minute} requests a minute"
            raise too_many(message, _whole_seconds(wait_s))
        bucket.left -= 1

    def _wait_s(self, ahead: int) -> int:
        """When one of those ahead is likely to be done, if they end evenly spread."""
        return _whole_seconds(self._mean_s / max(ahead, 1))


def _whole_seconds(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), RETRY_AFTER_MAX_S)
