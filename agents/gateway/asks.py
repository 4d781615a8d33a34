"""What does a client ask for? Request bodies checked and turned into one plain `Ask`.

Pure: no tokenizer, no fleet. Every parameter that OpenAI defines is known here: it is implemented,
accepted because its value asks for nothing, or refused by name. A parameter that nobody defines is
refused too, since a misspelt option that is silently dropped costs its sender a day.
"""

from dataclasses import dataclass
from typing import Any

from .api_errors import invalid
from .fields import read_boolean, read_integer, read_number, read_text, wrong_type

STOPS_MAX = 16  # OpenAI allows 4; agents' frameworks send more
STOP_CHARACTERS_MAX = 1024
MESSAGES_MAX = 16384
TOKENS_MAX = 1 << 24  # beyond any context: the exact limit is checked against the model
SEED_MAX = (1 << 63) - 1
COMPLETION_TOKENS_DEFAULT = 16  # what OpenAI's completions do when max_tokens is absent

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

# Values that ask for nothing beyond what is done anyway; every other value is refused.
_NO_OPS: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}
# Labels that OpenAI defines for its own bookkeeping: taken whatever they say.
_LABELS = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"})
_COMMON = frozenset(
    {"model", "n", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "user"}
    | {"max_tokens", "top_k", "ignore_eos"}  # the last two as other open servers name them
)
_COMPLETION = _COMMON | {"prompt", "echo", "best_of"}
_CHAT = _COMMON | {"messages", "max_completion_tokens"}

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request. Either `prompts` or `messages` is filled."""

    model: str
    prompts: tuple[Prompt, ...]
    messages: tuple[dict[str, Any], ...]
    choices: int  # per prompt
    max_tokens: int | None  # None: as much as fits
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stops: tuple[str, ...]
    is_stream: bool
    wants_usage: bool  # a usage chunk at the end of a stream
    wants_echo: bool
    ignores_eos: bool

    @property
    def is_chat(self) -> bool:
        """Whether chat was asked for."""
        return bool(self.messages)


def read_completion(data: dict[str, Any], choices_max: int) -> Ask:
    """Check the body of /v1/completions; raises ApiError naming the parameter."""
    _check_names(data, _COMPLETION)
    ask = _read_common(data, choices_max)
    prompts = _read_prompts(data.get("prompt"))
    max_tokens = read_integer(data, "max_tokens", 1, TOKENS_MAX)
    if data.get("best_of") not in (None, ask["choices"]):
        raise invalid("'best_of' is supported only when it equals 'n'", "best_of")
    if ask["choices"] * len(prompts) > choices_max:
        raise invalid(f"prompts x n must be at most {choices_max}", "prompt")
    return Ask(
        prompts=prompts,
        messages=(),
        max_tokens=COMPLETION_TOKENS_DEFAULT if max_tokens is None else max_tokens,
        wants_echo=read_boolean(data, "echo"),
        **ask,
    )


def read_chat(data: dict[str, Any], choices_max: int) -> Ask:
    """Check the body of /v1/chat/completions; raises ApiError naming the parameter."""
    _check_names(data, _CHAT)
    ask = _read_common(data, choices_max)
    limit = read_integer(data, "max_completion_tokens", 1, TOKENS_MAX)
    older = read_integer(data, "max_tokens", 1, TOKENS_MAX)
    return Ask(
        prompts=(),
        messages=_read_messages(data.get("messages")),
        max_tokens=older if limit is None else limit,
        wants_echo=False,
        **ask,
    )


def _check_names(data: dict[str, Any], implemented: frozenset[str]) -> None:
    for name in data:
        if name in implemented or name in _LABELS:
            continue
        if name not in _NO_OPS:
            raise invalid(f"Unknown parameter: {name!r}", name[:100], code="unknown_parameter")
        if not any(_same(data[name], value) for value in _NO_OPS[name]):
            raise invalid(
                f"Unsupported value for {name!r}: this server does not implement it",
                name,
                code="unsupported_value",
            )


def _same(value: Any, accepted: Any) -> bool:
    """Equality in which True is not 1."""
    return isinstance(value, bool) == isinstance(accepted, bool) and bool(value == accepted)


def _read_common(data: dict[str, Any], choices_max: int) -> dict[str, Any]:
    is_stream = read_boolean(data, "stream")
    temperature = read_number(data, "temperature", 0.0, 2.0)
    top_p = read_number(data, "top_p", 0.0, 1.0)
    if data.get("user") is not None:
        read_text(data["user"], "user")
    return {
        "model": _read_model(data.get("model")),
        "choices": read_integer(data, "n", 1, choices_max) or 1,
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": max(read_integer(data, "top_k", -1, 1 << 31) or 0, 0),
        "seed": read_integer(data, "seed", -SEED_MAX, SEED_MAX),
        "stops": _read_stops(data.get("stop")),
        "is_stream": is_stream,
        "wants_usage": _read_stream_options(data.get("stream_options"), is_stream),
        "ignores_eos": read_boolean(data, "ignore_eos"),
    }


def _read_model(value: Any) -> str:
    if value is None:
        raise invalid("you must provide a model parameter", "model", code="missing_parameter")
    return read_text(value, "model")[:256]


def _read_stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(stops) > STOPS_MAX:
        raise invalid(f"'stop' may hold at most {STOPS_MAX} strings", "stop")
    for stop in stops:
        if not 0 < len(read_text(stop, "stop")) <= STOP_CHARACTERS_MAX:
            raise invalid(f"each of 'stop' must have 1 to {STOP_CHARACTERS_MAX} characters", "stop")
    return tuple(stops)


def _read_stream_options(value: Any, is_stream: bool) -> bool:
    if value is None:
        return False
    if not isinstance(value, dict):
        raise wrong_type("stream_options", "an object", value)
    if not is_stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true", "stream_options")
    unknown = sorted(set(value) - {"include_usage", "include_obfuscation"})
    if unknown:
        name = f"stream_options.{unknown[0][:100]}"
        raise invalid(f"Unknown parameter: {name!r}", name, code="unknown_parameter")
    read_boolean(value, "include_obfuscation")  # padding against traffic analysis: none is made
    return read_boolean(value, "include_usage")


def _read_prompts(value: Any) -> tuple[Prompt, ...]:
    """A string, an array of strings, an array of token ids, or an array of such arrays."""
    if value is None:
        raise invalid("you must provide a prompt parameter", "prompt", code="missing_parameter")
    if isinstance(value, str):
        return (read_text(value, "prompt"),)
    if not isinstance(value, list):
        raise wrong_type("prompt", "a string or an array", value)
    if not value:
        raise invalid("'prompt' must not be empty", "prompt")
    if all(isinstance(item, str) for item in value):
        return tuple(read_text(item, "prompt") for item in value)
    if all(isinstance(item, list) for item in value):
        return tuple(_read_ids(item) for item in value)
    return (_read_ids(value),)


def _read_ids(value: list[Any]) -> tuple[int, ...]:
    if not all(type(item) is int and item >= 0 for item in value):
        raise invalid("'prompt' must hold token ids, which are integers from 0 on", "prompt")
    return tuple(value)


def _read_messages(value: Any) -> tuple[dict[str, Any], ...]:
    if value is None:
        raise invalid("you must provide messages", "messages", code="missing_parameter")
    if not isinstance(value, list):
        raise wrong_type("messages", "an array", value)
    if not 0 < len(value) <= MESSAGES_MAX:
        raise invalid(f"'messages' must hold 1 to {MESSAGES_MAX} messages", "messages")
    return tuple(_read_message(item, f"messages[{at}]") for at, item in enumerate(value))


# Fields that clients send back unchanged from an earlier answer; fine as long as they are empty.
_EMPTY_FIELDS = ("refusal", "tool_calls", "function_call", "audio", "annotations", "tool_call_id")


def _read_message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    for name in value:
        known = name in ("role", "content", "name")
        if not known and not (name in _EMPTY_FIELDS and value[name] in (None, [], "")):
            raise invalid(f"{where}.{name[:100]} is not supported", f"{where}.{name[:100]}")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(sorted(_ROLES))}", f"{where}.role")
    message = {
        "role": "system" if role == "developer" else role,
        "content": _read_content(value.get("content"), f"{where}.content"),
    }
    if value.get("name") is not None:
        message["name"] = read_text(value["name"], f"{where}.name")
    return message


def _read_content(value: Any, where: str) -> str:
    """A string, or an array of text parts, which are joined."""
    if isinstance(value, str):
        return read_text(value, where)
    if not isinstance(value, list):
        raise wrong_type(where, "a string or an array of text parts", value)
    return "".join(_read_part(part, f"{where}[{at}]") for at, part in enumerate(value))


def _read_part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise wrong_type(where, "an object", part)
    if part.get("type") != "text":
        raise invalid(f"{where}.type must be 'text': this model reads text only", where)
    return read_text(part.get("text"), f"{where}.text")
