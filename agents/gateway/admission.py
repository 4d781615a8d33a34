"""Who may send a request to what, and how many at once? Tokens, tenants, counted slots, a rate.

A bearer token is known only by its SHA-256 digest, as the store has it; neither is ever logged. The
counters bound what clients can make the gateway hold; beyond them the answer is 429 with an
estimate of when to come again. A token reaches the models of its tenant only, an admin's reaches
all; of another tenant's model it is told what it is told of one that is not there. Time is an
argument.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ...core.records import SpecRecord, TokenRecord
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


def may_use(caller: TokenRecord, model: SpecRecord) -> bool:
    """Whether a model is there for a token."""
    return caller.role == "admin" or caller.tenant == model.tenant


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one gateway lets in; 0 means no such limit, except of `total_max`, `per_token_max`."""

    total_max: int
    per_token_max: int
    per_minute_max: int = 0
    per_tenant_max: int = 0
    per_tenant_minute_max: int = 0


@dataclass(slots=True)
class _Bucket:
    """Requests that a token or tenant may still send at once, refilled evenly."""

    left: float
    at: float


class Slots:
    """Requests held now, in all, by token and by tenant, and how fast each of them sends."""

    def __init__(self, allowance: Allowance, monotonic: Callable[[], float]) -> None:
        self._allowance = allowance
        self._monotonic = monotonic
        self._by_token: Counter[str] = Counter()
        self._by_tenant: Counter[str] = Counter()
        # One per token and tenant that exists: bounded by the store.
        self._buckets: dict[tuple[str, str], _Bucket] = {}
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
    def take(self, token_name: str, tenant: str = "default") -> Iterator[None]:
        """Hold a slot for the time of a request; raises ApiError 429 when none is free."""
        self._check_held(token_name, tenant)
        self._spend(token_name, tenant)
        started = self._monotonic()
        held = ((self._by_token, token_name), (self._by_tenant, tenant))
        for counter, name in held:
            counter[name] += 1
        try:
            yield
        finally:
            self._mean_s += _SMOOTHING * (self._monotonic() - started - self._mean_s)
            for counter, name in held:
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]

    def _check_held(self, token_name: str, tenant: str) -> None:
        allowance, mine = self._allowance, self._by_token[token_name]
        theirs = self._by_tenant[tenant]
        if self.held >= allowance.total_max:
            raise too_many(
                "the server holds as many requests as it can: try again soon",
                self._wait_s(self.held),
            )
        if mine >= allowance.per_token_max:
            raise too_many(f"this API key has {mine} requests running already", self._wait_s(mine))
        if allowance.per_tenant_max and theirs >= allowance.per_tenant_max:
            message = f"tenant {tenant} has {theirs} requests running already"
            raise too_many(message, self._wait_s(theirs))

    def _spend(self, token_name: str, tenant: str) -> None:
        """Take one request from the token's and the tenant's minute, or from neither."""
        mine = self._refilled("token", token_name, self._allowance.per_minute_max)
        theirs = self._refilled("tenant", tenant, self._allowance.per_tenant_minute_max)
        _require(mine, self._allowance.per_minute_max, "this API key")
        _require(theirs, self._allowance.per_tenant_minute_max, f"tenant {tenant}")
        for bucket in (mine, theirs):
            if bucket is not None:
                bucket.left -= 1

    def _refilled(self, kind: str, name: str, per_minute: int) -> _Bucket | None:
        if not per_minute:
            return None
        now = self._monotonic()
        bucket = self._buckets.setdefault((kind, name), _Bucket(per_minute, now))
        bucket.left = min(bucket.left + (now - bucket.at) * per_minute / 60, float(per_minute))
        bucket.at = now
        return bucket

    def _wait_s(self, ahead: int) -> int:
        """When one of those ahead is likely to be done, if they end evenly spread."""
        return _whole_seconds(self._mean_s / max(ahead, 1))


def _require(bucket: _Bucket | None, per_minute: int, who: str) -> None:
    if bucket is not None and bucket.left < 1:
        wait_s = (1 - bucket.left) * 60 / per_minute
        raise too_many(f"{who} may send {per_minute} requests a minute", _whole_seconds(wait_s))


def _whole_seconds(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), RETRY_AFTER_MAX_S)
