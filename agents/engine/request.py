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
class Sampling:
    """How the next token is drawn. temperature 0 is greedy and ignores the rest.

    The draw for token i depends on (seed, i) and the logits only, never on the batch or on what was
    drawn before in this process, so a replay elsewhere draws the same tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. `already` are tokens generated and sent before a replay.

    `max_tokens` counts generated tokens including `already`; token indices do too.
    """

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    eos_ids: tuple[int, ...] = ()
    already: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOut:
    """Token number `index` of a request, counted from 0 over generated tokens incl. `already`."""

    request_id: str
    index: int
    token: int


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
