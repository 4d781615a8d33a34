"""What is served while settings are tried? The same requests every time.

Either drawn from a seed (lengths uniform in a range, all at once or at random times), or read from
a file of JSON lines:

    {"prompt": [17, 4, ...] or "text", "max_tokens": 64, "at_s": 0.5}
    {"input_length": 300, "output_length": 64, "timestamp": 500}       lengths of a recorded trace

Prompts given by length get tokens drawn from the seed. Times are seconds after the start
(`timestamp`: milliseconds).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import RefusedError, UsageError

#: Requests of one workload: a trial serves all of them, and a study has some tens of trials.
REQUESTS_MAX = 20_000

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its prompt, how many tokens it wants, when it comes."""

    prompt: tuple[int, ...]
    new_tokens: int
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A drawn workload. `rate`: requests per second, 0 for all at once; `shared`: tokens that all
    prompts begin with."""

    requests: int = 48
    input_tokens: tuple[int, int] = (16, 192)
    output_tokens: tuple[int, int] = (16, 64)
    rate: float = 0.0
    shared: int = 0
    seed: int = 7


def draw(shape: Shape, vocab: int) -> tuple[Ask, ...]:
    """The requests of a shape; the same for the same seed."""
    import numpy as np

    random, at_s, asks = np.random.default_rng(shape.seed), 0.0, []
    common = random.integers(1, vocab, shape.shared).tolist()
    for _ in range(shape.requests):
        length = int(random.integers(shape.input_tokens[0], shape.input_tokens[1] + 1))
        own = random.integers(1, vocab, length).tolist()
        count = int(random.integers(shape.output_tokens[0], shape.output_tokens[1] + 1))
        asks.append(Ask((*common, *own), count, at_s))
        at_s += float(random.exponential(1 / shape.rate)) if shape.rate else 0.0
    return tuple(asks)


def parse_range(text: str, option: str) -> tuple[int, int]:
    """ "64" or "16:192" as (least, most); raises UsageError."""
    low, _, high = text.partition(":")
    try:
        found = int(low), int(high or low)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise UsageError(f"{option} {text}: not N or LEAST:MOST", next_step="such as 16:192")
    return found


def read_jsonl(path: Path, vocab: int, seed: int, encode: Encode) -> tuple[Ask, ...]:
    """The requests of a file, in the order of their times. Raises RefusedError with the line."""
    import numpy as np

    random = np.random.default_rng(seed)
    asks: list[Ask] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: {error}", next_step="give a file of JSON lines") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(asks) >= REQUESTS_MAX:
            raise RefusedError(f"{path}: more than {REQUESTS_MAX} requests")
        try:
            entry = json.loads(line)
            prompt = _prompt(entry, vocab, random, encode)
            at_s = float(entry["at_s"] if "at_s" in entry else entry.get("timestamp", 0) / 1e3)
            count = int(entry["max_tokens"] if "max_tokens" in entry else entry["output_length"])
            asks.append(_checked(Ask(prompt, count, at_s), vocab))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(
                f"{path}:{number}: no request ({type(error).__name__}: {error})",
                next_step='write {"prompt": ..., "max_tokens": ...} or {"input_length": ..., '
                '"output_length": ...}',
            ) from error
    if not asks:
        raise RefusedError(f"{path}: no request in it")
    first_s = min(ask.at_s for ask in asks)
    shifted = [Ask(ask.prompt, ask.new_tokens, ask.at_s - first_s) for ask in asks]
    return tuple(sorted(shifted, key=lambda ask: ask.at_s))


def _prompt(entry: Any, vocab: int, random: Any, encode: Encode) -> tuple[int, ...]:
    if "prompt" not in entry:
        return tuple(random.integers(1, vocab, int(entry["input_length"])).tolist())
    given = entry["prompt"]
    return tuple(int(token) for token in (encode(given) if isinstance(given, str) else given))


def _checked(ask: Ask, vocab: int) -> Ask:
    if not ask.prompt or ask.new_tokens < 1:
        raise ValueError("an empty prompt, or no token to generate")
    if not all(0 <= token < vocab for token in ask.prompt):
        raise ValueError(f"a token outside the vocabulary of {vocab}")
    if not 0 <= ask.at_s < float("inf"):
        raise ValueError(f"at_s {ask.at_s}")
    return ask


def check_fits(asks: Sequence[Ask], context: int) -> None:
    """Raise RefusedError when a request is longer than the model's context."""
    for number, ask in enumerate(asks, 1):
        length = len(ask.prompt) + ask.new_tokens
        if length > context:
            raise RefusedError(
                f"request {number} of the workload needs {length} tokens; the context is {context}",
                next_step="shorten --load input=... and --load output=..., or the file's requests, "
                "or raise engine.maxContext in the spec",
            )


def digest(asks: Sequence[Ask]) -> str:
    """What tells one workload from another; part of a study's identity."""
    hashed = hashlib.blake2b(digest_size=8)
    for ask in asks:
        hashed.update(json.dumps([ask.prompt, ask.new_tokens, ask.at_s]).encode())
    return hashed.hexdigest()
