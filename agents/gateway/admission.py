"""Who may send a request, and how many may be held at once? Tokens, and counted slots.

A bearer token is known only by its SHA-256 digest, as the store has it; neither is ever logged. The
counters bound what clients can make the gateway hold; beyond them the answer is 429.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping

from ...core.records import TokenRecord
from .api_errors import too_many, unauthorized

_SCHEME = "bearer "
ROLES = frozenset({"viewer", "operator", "admin"})


def authenticate(header: str | None, tokens: Mapping[str, TokenRecord]) -> TokenRecord:
    """The token's record; raises ApiError 401. `header` is the Authorization header."""
    if not header or header[: len(_SCHEME)].lower() != _SCHEME:
        raise unauthorized("You didn't provide an API key: send Authorization: Bearer TOKEN")
    secret = header[len(_SCHEME) :].strip()
    record = tokens.get(hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest())
    if record is None or record.role not in ROLES:
        raise unauthorized("Incorrect API key provided")
    return record


class Slots:
    """Requests held now, in all and by token."""

    def __init__(self, total_max: int, per_token_max: int) -> None:
        self._total_max = total_max
        self._per_token_max = per_token_max
        self._by_token: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Requests held now."""
        return self._by_token.total()

    @contextlib.contextmanager
    def take(self, token_name: str) -> Iterator[None]:
        """Hold a slot for the time of a request; raises ApiError 429 when none is free."""
        if self.held >= self._total_max:
            raise too_many("the server holds as many requests as it can: try again soon")
        if self._by_token[token_name] >= self._per_token_max:
            raise too_many(f"this API key has {self._per_token_max} requests running already")
        self._by_token[token_name] += 1
        try:
            yield
        finally:
            self._by_token[token_name] -= 1
            if not self._by_token[token_name]:
                del self._by_token[token_name]
