"""What does a client ask for? Request bodies checked and turned into one plain `Ask`.

Pure: no tokenizer, no fleet. Every parameter that OpenAI defines is known here: it is implemented,
accepted because its value asks for nothing, or refused by name. A parameter that nobody defines is
refused too, since a misspelt option that is silently dropped costs its sender a day.
"""

from dataclasses import dataclass, field
from typing import Any

from . import wishes as drawing
from .api_errors import invalid
from .fields import read_boolean, read_integer, read_text, wrong_type
from .messages import Message, read_messages
from .wishes import Wishes, read_wishes

STOPS_MAX = 16  # OpenAI allows 4; agents' frameworks send more
STOP_CHARACTERS_MAX = 1024
TOKENS_MAX = 1 << 24  # beyond any context: the exact limit is checked against the model
COMPLETION_TOKENS_DEFAULT = 16  # what OpenAI's completions do when max_tokens is absent

# Values that ask for nothing beyond what is done anyway; every other value is refused.
NO_OPS: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}
# Labels that OpenAI defines for its own bookkeeping: taken whatever they say.
LABELS = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"})
_COMMON = frozenset({"model", "n", "stop", "stream", "stream_options", "user", "max_tokens"})
_COMMON |= drawing.NAMES | {"moectl", "logprobs"}
COMPLETION = _COMMON | {"prompt", "echo", "best_of"}
CHAT = _COMMON | {"messages", "max_completion_tokens", "top_logprobs"}

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request. Either `prompts` or `messages` is filled."""

    model: str
    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Message, ...] = ()
    choices: int = 1  # per prompt
    max_tokens: int | None = None  # None: as much as fits
    wishes: Wishes = field(default_factory=Wishes)
    stops: tuple[str, ...] = ()
    is_stream: bool = False
    wants_usage: bool = False  # a usage chunk at the end of a stream
    wants_echo: bool = False
    wants_timings: bool = False  # where its time went, beside the usage
    is_response: bool = False  # asked for at /v1/responses

    @property
    def is_chat(self) -> bool:
        """Whether chat was asked for."""
        return bool(self.messages)

    @property
    def prompt_name(self) -> str:
        """The parameter that holds what the model reads."""
        if self.is_response:
            return "input"
        return "messages" if self.is_chat else "prompt"


def read_completion(data: dict[str, Any], choices_max: int) -> Ask:
    """Check the body of /v1/completions; raises ApiError naming the parameter."""
    check_names(data, COMPLETION, NO_OPS)
    ask = _read_common(data, choices_max)
    logprobs = drawing.read_completion_logprobs(data)
    prompts = _read_prompts(data.get("prompt"))
    max_tokens = read_integer(data, "max_tokens", 1, TOKENS_MAX)
    if data.get("best_of") not in (None, ask["choices"]):
        raise invalid("'best_of' is supported only when it equals 'n'", "best_of")
    if logprobs is not None and read_boolean(data, "echo"):
        raise invalid("'logprobs' of echoed prompts are not implemented", "logprobs")
    if ask["choices"] * len(prompts) > choices_max:
        raise invalid(f"prompts x n must be at most {choices_max}", "prompt")
    return Ask(
        prompts=prompts,
        max_tokens=COMPLETION_TOKENS_DEFAULT if max_tokens is None else max_tokens,
        wants_echo=read_boolean(data, "echo"),
        wishes=read_wishes(data, logprobs),
        **ask,
    )


def read_chat(data: dict[str, Any], choices_max: int) -> Ask:
    """Check the body of /v1/chat/completions; raises ApiError naming the parameter."""
    check_names(data, CHAT, NO_OPS)
    ask = _read_common(data, choices_max)
    limit = read_integer(data, "max_completion_tokens", 1, TOKENS_MAX)
    older = read_integer(data, "max_tokens", 1, TOKENS_MAX)
    return Ask(
        messages=read_messages(data.get("messages")),
        max_tokens=older if limit is None else limit,
        wishes=read_wishes(data, drawing.read_chat_logprobs(data)),
        **ask,
    )


def check_names(
    data: dict[str, Any], implemented: frozenset[str], no_ops: dict[str, tuple[Any, ...]]
) -> None:
    """Refuse parameters that are unknown, or known and not implemented; raises ApiError."""
    for name in data:
        if name in implemented or name in LABELS:
            continue
        if name not in no_ops:
            raise invalid(f"Unknown parameter: {name[:100]!r}", name[:100], "unknown_parameter")
        if not any(_same(data[name], value) for value in no_ops[name]):
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
    if data.get("user") is not None:
        read_text(data["user"], "user")
    return {
        "model": read_model(data.get("model")),
        "choices": read_integer(data, "n", 1, choices_max) or 1,
        "stops": _read_stops(data.get("stop")),
        "is_stream": is_stream,
        "wants_usage": _read_stream_options(data.get("stream_options"), is_stream),
        "wants_timings": read_own_options(data.get("moectl")),
    }


def read_own_options(value: Any) -> bool:
    """`moectl`: {"timings": bool}, this server's own extension; whether timings are wanted."""
    if value is None:
        return False
    if not isinstance(value, dict):
        raise wrong_type("moectl", "an object", value)
    for name in value:
        if name != "timings":
            name = f"moectl.{name[:100]}"
            raise invalid(f"Unknown parameter: {name!r}", name, code="unknown_parameter")
    return read_boolean(value, "timings")


def read_model(value: Any) -> str:
    """The model's name; raises ApiError when there is none."""
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
