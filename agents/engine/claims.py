"""Who keeps the tokens of a moved request until its gateway asks for it here?

A request that came from another rank runs at once; its gateway learns of it a moment later and
claims it by key. What comes in between is kept. What nobody claims in time is cancelled by whoever
opened the claim: its gateway is gone, or has begun a replay elsewhere. Not thread-safe: the data
server's lock guards it.
"""

from dataclasses import dataclass, field

from .request import DoneOut, StepResult, TokenOut

#: A gateway is told within milliseconds. Chosen: a gateway that stalls for seconds still gets it.
CLAIM_S = 10.0


@dataclass(slots=True)
class Unclaimed:
    """A moved request without a reader: its prompt, what it said since, and its end."""

    prompt_ids: tuple[int, ...]
    tokens: list[TokenOut] = field(default_factory=list)
    done: DoneOut | None = None
    spent: dict[str, float] | None = None


class Claims:
    """Unclaimed requests by key, which is their id here."""

    def __init__(self) -> None:
        self._open: dict[str, Unclaimed] = {}

    def open(self, key: str, prompt_ids: tuple[int, ...]) -> None:
        """A moved request begins to run here."""
        self._open[key] = Unclaimed(prompt_ids)

    def keep_token(self, token: TokenOut) -> None:
        """A token that no gateway reads; dropped unless its request is unclaimed."""
        unclaimed = self._open.get(token.request_id)
        if unclaimed is not None:
            unclaimed.tokens.append(token)

    def keep_done(self, done: DoneOut, spent: dict[str, float] | None) -> None:
        """The end of a request that no gateway reads."""
        unclaimed = self._open.get(done.request_id)
        if unclaimed is not None:
            unclaimed.done, unclaimed.spent = done, spent

    def take(self, key: str, prompt: list[int]) -> Unclaimed | None:
        """Claim a request, once; None when it is not here or is another one than that."""
        unclaimed = self._open.get(key)
        if unclaimed is None or unclaimed.prompt_ids != tuple(prompt):
            return None
        return self._open.pop(key)

    def expire(self, key: str) -> bool:
        """Nobody came: forget it; True when it was still unclaimed."""
        return self._open.pop(key, None) is not None


def since(unclaimed: Unclaimed, already: int) -> StepResult:
    """What its reader lacks: tokens from number `already` on, and the end."""
    tokens = tuple(token for token in unclaimed.tokens if token.index >= already)
    return StepResult(tokens, (unclaimed.done,) if unclaimed.done is not None else ())
