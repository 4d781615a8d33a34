"""What a request is to the engine, and what the engine says about it.

Answers: which words pass between whoever feeds an engine (the worker's server, a test) and the
engine. Never holds progress (that is the scheduler's) and never touches torch, so that both ends of
a wire and the pure scheduler can use it.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class DoneReason(StrEnum):
    """Why a request ended. `refused:<why>` and `error:<why>` are plain strings beside these."""

    STOP = "stop"  # one of its end-of-sequence tokens came (that token is sent too)
    LENGTH = "length"  # max_tokens or the context's end was reached
    CANCELLED = "cancelled"
    MOVED = "moved"  # this rank is leaving: replay elsewhere from what was sent


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the generated text must look like: `kind` is json_schema or regex."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. temperature 0 is greedy; filters then change nothing.

    The draw for token i depends on (seed, i), the logits and the request's own tokens only, never
    on the batch or on what was drawn before in this process, so a replay elsewhere draws the same.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int = 0
    min_p: float = 0.0  # least probability, as a share of the likeliest token's
    repetition_penalty: float = 1.0  # over prompt and generated tokens; divides, 1 is off
    presence_penalty: float = 0.0  # over generated tokens, once each; subtracts
    frequency_penalty: float = 0.0  # over generated tokens, each time; subtracts
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int = -1  # -1: none; n: the drawn token's, and those of the n likeliest
    grammar: Grammar | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is the answer, and nothing else is asked."""
        return self == PLAIN or (self.temperature <= 0.0 and not self.changes_logits)

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are made likelier, less likely or impossible before the draw."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.grammar
        )


PLAIN = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. `already` are tokens generated and sent before a replay.

    `max_tokens` counts generated tokens including `already`; token indices do too. Among waiting
    requests the highest `priority` runs first, and may take the place of a running lower one.
    Requests share cached prefixes only with requests of the same `cache_salt`.
    """

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    eos_ids: tuple[int, ...] = ()
    already: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""

    @property
    def tokens_max(self) -> int:
        """The most tokens that it can have, prompt and generated."""
        return len(self.prompt_ids) + self.max_tokens


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Natural-log probabilities under the model itself, before temperature, penalties, grammar."""

    drawn: float
    top: tuple[tuple[int, float], ...] = ()  # (token, log-probability), likeliest first


@dataclass(frozen=True, slots=True)
class TokenOut:
    """Token number `index` of a request, counted from 0 over generated tokens incl. `already`."""

    request_id: str
    index: int
    token: int
    likelihood: Likelihood | None = None


@dataclass(frozen=True, slots=True)
class DoneOut:
    """The last word about a request; `reason` is a DoneReason, `refused:<why>` or `error:<why>`."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step produced, in the order of the batch."""

    tokens: tuple[TokenOut, ...] = ()
    dones: tuple[DoneOut, ...] = ()
