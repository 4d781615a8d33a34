"""What does a submit message say, and how is a token told? The data protocol's words as values.

Numbers that a client of the gateway can choose are checked here once more: a gateway of another
version may let through what this engine would stumble over. What is malformed (no gateway sends
it) is a ValueError; what is out of range is refused with its reason.
"""

import math
from typing import Any

from .progress import EngineRefused
from .request import Grammar, Request, Sampling, TokenOut

#: A request's id, as its gateway chose it.
ID_CHARACTERS_MAX = 200
#: Likelihoods asked for per token; above OpenAI's 20, below what would fill a message.
LOGPROBS_MAX = 100
#: Entries of a logit bias: OpenAI's limit.
BIAS_MAX = 1024
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}
_PRIORITIES = range(-1000, 1001)


def request_of(message: dict[str, Any], inner_id: str) -> Request:
    """The request in a submit message. Raises KeyError, TypeError, ValueError or EngineRefused."""
    outer = message["id"]
    if not isinstance(outer, str) or not 1 <= len(outer) <= ID_CHARACTERS_MAX:
        raise ValueError(f"a request's id has 1 to {ID_CHARACTERS_MAX} characters")
    priority = int(message.get("priority", 0))
    if priority not in _PRIORITIES:
        raise EngineRefused(f"priority {priority} is not within {_PRIORITIES[0]} to 1000")
    return Request(
        id=inner_id,
        prompt_ids=_ids(message["prompt"]),
        max_tokens=int(message["max_tokens"]),
        sampling=sampling_of(message.get("sampling") or {}),
        eos_ids=_ids(message.get("eos", ())),
        already=_ids(message.get("already", ())),
        priority=priority,
        cache_salt=str(message.get("cache_salt", ""))[:ID_CHARACTERS_MAX],
    )


def message_of(request: Request) -> dict[str, Any]:
    """The submit message of a request: `request_of` makes an equal one of it."""
    plain = request.sampling
    sampling: dict[str, Any] = {name: getattr(plain, name) for name in (*_RANGES, "top_k", "seed")}
    sampling["logit_bias"] = [[token, bias] for token, bias in plain.logit_bias]
    sampling["logprobs"] = plain.logprobs if plain.logprobs >= 0 else None
    if plain.grammar is not None:
        sampling["grammar"] = {"kind": plain.grammar.kind, "text": plain.grammar.text}
    return {
        "id": request.id,
        "prompt": list(request.prompt_ids),
        "already": list(request.already),
        "max_tokens": request.max_tokens,
        "eos": list(request.eos_ids),
        "sampling": sampling,
        "priority": request.priority,
        "cache_salt": request.cache_salt,
    }


def sampling_of(plain: dict[str, Any]) -> Sampling:
    """The sampling object; every field may be left out. Raises as `request_of`."""
    chosen = {name: _number(plain, name) for name in _RANGES if plain.get(name) is not None}
    logprobs = plain.get("logprobs")
    if logprobs is not None and not -1 <= int(logprobs) <= LOGPROBS_MAX:
        raise EngineRefused(f"logprobs {logprobs} is not within 0 to {LOGPROBS_MAX}")
    return Sampling(
        **chosen,
        top_k=int(plain.get("top_k") or 0),
        seed=int(plain.get("seed") or 0),
        logit_bias=_bias(plain.get("logit_bias") or ()),
        logprobs=-1 if logprobs is None else int(logprobs),
        grammar=_grammar(plain.get("grammar")),
    )


def token_entry(outer_id: str, token: TokenOut) -> list[Any]:
    """How a token is told: [id, index, token], then its likelihood if it was asked for."""
    entry: list[Any] = [outer_id, token.index, token.token]
    if token.likelihood is not None:
        top = [[other, _finite(logprob)] for other, logprob in token.likelihood.top]
        entry.append({"logprob": _finite(token.likelihood.drawn), "top": top})
    return entry


def _number(plain: dict[str, Any], name: str) -> float:
    low, high = _RANGES[name]
    value = float(plain[name])
    if not low <= value <= high:  # also refuses what is not a number
        raise EngineRefused(f"{name} {value} is not within {low:g} to {high:g}")
    return value


def _bias(pairs: Any) -> tuple[tuple[int, float], ...]:
    if len(pairs) > BIAS_MAX:
        raise EngineRefused(f"a logit bias of {len(pairs)} tokens, more than {BIAS_MAX}")
    biases = tuple((int(token), float(bias)) for token, bias in pairs)
    if not all(math.isfinite(bias) for _, bias in biases):
        raise EngineRefused("a logit bias that is not a finite number")
    return biases


def _grammar(plain: Any) -> Grammar | None:
    return None if plain is None else Grammar(str(plain["kind"]), str(plain["text"]))


def _ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
        raise ValueError("token ids must be a list of integers")
    return tuple(values)


def _finite(logprob: float) -> float:
    """JSON has no infinity; no token is that unlikely."""
    return max(logprob, -1e4)
