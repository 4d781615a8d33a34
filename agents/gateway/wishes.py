"""How does a client want its tokens drawn and told? Sampling, constraints and log-probabilities.

Pure readers of request fields, shared by every generating path. Ranges are OpenAI's where it
defines one; the extensions (min_p, repetition_penalty, priority, ...) are named as other open
servers name them. Nothing is clamped in silence: what is out of range is a 400 that names the
field.
"""

import json
from dataclasses import dataclass
from typing import Any

from .api_errors import invalid
from .fields import read_boolean, read_integer, read_number, wrong_type

SEED_MAX = (1 << 63) - 1
LOGPROBS_MAX = 20  # OpenAI's limit for chat; its older one for completions is 5
BIAS_MAX = 1024  # tokens with a bias, OpenAI's limit
SCHEMA_BYTES_MAX = 128 << 10  # a schema this long is a program, not a form
PRIORITY_MAX = 100
REPETITION_MIN, REPETITION_MAX = 0.01, 10.0

NAMES = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "priority", "ignore_eos", "logit_bias"}
    | {"repetition_penalty", "presence_penalty", "frequency_penalty", "response_format"}
)
ANY_OBJECT = '{"type":"object"}'  # the schema of response_format json_object


@dataclass(frozen=True, slots=True)
class Wishes:
    """Checked; None and the neutral values ask for nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None  # how many likeliest tokens to tell beside the drawn one
    json_schema: str | None = None
    priority: int = 0  # higher runs first
    ignores_eos: bool = False

    def sampling(self, seed: int) -> dict[str, Any]:
        """The worker's sampling object under a seed; neutral extensions are left out."""
        plain: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": seed % (1 << 63),
        }
        neutral = Wishes()
        for name in ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if getattr(self, name) != getattr(neutral, name):
                plain[name] = getattr(self, name)
        if self.logit_bias:
            plain["logit_bias"] = [list(pair) for pair in self.logit_bias]
        if self.logprobs is not None:
            plain["logprobs"] = self.logprobs
        if self.json_schema is not None:
            plain["grammar"] = {"kind": "json_schema", "text": self.json_schema}
        return plain


def read_wishes(data: dict[str, Any], logprobs: int | None) -> Wishes:
    """Check the fields in `NAMES`; raises ApiError naming the one that is wrong."""
    repetition = read_number(data, "repetition_penalty", REPETITION_MIN, REPETITION_MAX)
    wishes = Wishes(
        temperature=_number(data, "temperature", (0.0, 2.0), 1.0),
        top_p=_number(data, "top_p", (0.0, 1.0), 1.0),
        top_k=max(read_integer(data, "top_k", -1, 1 << 31) or 0, 0),
        min_p=_number(data, "min_p", (0.0, 1.0), 0.0),
        repetition_penalty=1.0 if repetition is None else repetition,
        presence_penalty=_number(data, "presence_penalty", (-2.0, 2.0), 0.0),
        frequency_penalty=_number(data, "frequency_penalty", (-2.0, 2.0), 0.0),
        logit_bias=_read_bias(data.get("logit_bias")),
        seed=read_integer(data, "seed", -SEED_MAX, SEED_MAX),
        logprobs=logprobs,
        json_schema=read_response_format(data.get("response_format"), "response_format"),
        priority=read_integer(data, "priority", -PRIORITY_MAX, PRIORITY_MAX) or 0,
        ignores_eos=read_boolean(data, "ignore_eos"),
    )
    if wishes.ignores_eos and wishes.json_schema is not None:
        raise invalid(
            "'ignore_eos' cannot go with a schema, whose end is the text's end", "ignore_eos"
        )
    return wishes


def read_completion_logprobs(data: dict[str, Any]) -> int | None:
    """`logprobs` of /v1/completions: a number of likeliest tokens."""
    return read_integer(data, "logprobs", 0, LOGPROBS_MAX)


def read_chat_logprobs(data: dict[str, Any]) -> int | None:
    """`logprobs` and `top_logprobs` of /v1/chat/completions."""
    wanted = read_boolean(data, "logprobs")
    count = read_integer(data, "top_logprobs", 0, LOGPROBS_MAX)
    if not wanted:
        if count:
            raise invalid("'top_logprobs' is only allowed when 'logprobs' is true", "top_logprobs")
        return None
    return count or 0


def read_response_format(value: Any, where: str) -> str | None:
    """The JSON schema that the text must follow, as JSON text; None for free text."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        raise invalid(f"{where}.type must be text, json_object or json_schema", f"{where}.type")
    holder = value.get("json_schema")
    if not isinstance(holder, dict):
        raise wrong_type(f"{where}.json_schema", "an object", holder)
    return read_schema(holder.get("schema"), f"{where}.json_schema.schema")


def read_schema(value: Any, where: str) -> str:
    """A JSON schema as compact JSON text; raises ApiError 400."""
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > SCHEMA_BYTES_MAX:
        raise invalid(f"{where} has {len(text)} bytes, at most {SCHEMA_BYTES_MAX} are read", where)
    return text


def _number(data: dict[str, Any], name: str, limits: tuple[float, float], absent: float) -> float:
    value = read_number(data, name, *limits)
    return absent if value is None else value


def _read_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """{"token id": bias from -100 to 100}; ids are checked against the model later."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise wrong_type("logit_bias", "an object", value)
    if len(value) > BIAS_MAX:
        raise invalid(f"'logit_bias' may name at most {BIAS_MAX} tokens", "logit_bias")
    pairs = []
    for token in value:
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise invalid(f"'logit_bias' has {token[:40]!r}, which is no token id", "logit_bias")
        bias = read_number({"logit_bias": value[token]}, "logit_bias", -100.0, 100.0)
        pairs.append((int(token), bias or 0.0))
    return tuple(pairs)
