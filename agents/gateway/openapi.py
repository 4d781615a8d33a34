"""What does the gateway's OpenAPI document say? JSON schemas of bodies, answers and errors. Pure.

The document describes what `asks.py` and `responses.py` check; it never checks anything itself. One
test generates requests from it, so a limit that stands here and not there (or the other way round)
is found.
"""

from typing import Any

from fastapi import FastAPI

from . import asks, messages, wishes

Schema = dict[str, Any]


def _number(low: float, high: float) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


_FLAG: Schema = {"type": ["boolean", "null"]}
_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}


def _object(properties: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_JSON_SCHEMA = _object({"type": {"const": "json_schema"}, "json_schema": {"type": "object"}})
_FORMAT: Schema = {
    "anyOf": [
        {"type": "null"},
        _object({"type": {"enum": ["text", "json_object"]}}, ("type",)),
        _JSON_SCHEMA | {"required": ["type", "json_schema"]},
    ]
}
_DRAWING: dict[str, Schema] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _integer(-1, 1 << 31),
    "min_p": _number(0, 1),
    "seed": _integer(-wishes.SEED_MAX, wishes.SEED_MAX),
    "priority": _integer(-wishes.PRIORITY_MAX, wishes.PRIORITY_MAX),
    "ignore_eos": _FLAG,
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": wishes.BIAS_MAX,
    },
    "repetition_penalty": _number(wishes.REPETITION_MIN, wishes.REPETITION_MAX),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
}
_OWN: Schema = {"anyOf": [{"type": "null"}, _object({"timings": _FLAG})]}
_MODEL = {"model": {"type": "string", "examples": ["chat"]}, "user": _TEXT_OR_NULL, "moectl": _OWN}
_STREAM: dict[str, Schema] = {
    "stream": _FLAG,
    "stream_options": {
        "anyOf": [
            {"type": "null"},
            _object({"include_usage": _FLAG, "include_obfuscation": _FLAG}),
        ]
    },
}
_STOP_TEXT: Schema = _TEXT | {"minLength": 1, "maxLength": asks.STOP_CHARACTERS_MAX}
_STOP: Schema = {
    "anyOf": [
        {"type": "null"},
        _STOP_TEXT,
        {"type": "array", "items": _STOP_TEXT, "maxItems": asks.STOPS_MAX},
    ]
}
_TOKENS = _integer(1, asks.TOKENS_MAX)
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT: Schema = {
    "anyOf": [
        _TEXT,
        _IDS,
        {"type": "array", "items": _TEXT, "minItems": 1},
        {"type": "array", "items": _IDS, "minItems": 1},
    ]
}
_PART = _object({"type": {"const": "text"}, "text": _TEXT}, ("type", "text"))
_MESSAGE = _object(
    {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}]},
        "name": _TEXT_OR_NULL,
    },
    ("role", "content"),
)
_MESSAGES: Schema = {
    "type": "array",
    "items": _MESSAGE,
    "minItems": 1,
    "maxItems": messages.MESSAGES_MAX,
}
_CHOICES = _integer(1, 16)

COMPLETION = _object(
    _MODEL | _DRAWING | _STREAM
    | {"response_format": _FORMAT, "prompt": _PROMPT, "max_tokens": _TOKENS, "stop": _STOP}
    | {"n": _CHOICES, "logprobs": _integer(0, wishes.LOGPROBS_MAX), "echo": _FLAG},
    ("model", "prompt"),
)  # fmt: skip
CHAT = _object(
    _MODEL | _DRAWING | _STREAM
    | {"response_format": _FORMAT, "messages": _MESSAGES, "stop": _STOP, "n": _CHOICES}
    | {"max_tokens": _TOKENS, "max_completion_tokens": _TOKENS}
    | {"logprobs": _FLAG, "top_logprobs": _integer(0, wishes.LOGPROBS_MAX)},
    ("model", "messages"),
)  # fmt: skip
RESPONSE = _object(
    _MODEL | _DRAWING
    | {"input": {"anyOf": [_TEXT, _MESSAGES]}, "instructions": _TEXT_OR_NULL, "stream": _FLAG}
    | {"max_output_tokens": _TOKENS, "text": {"type": ["object", "null"]}},
    ("model", "input"),
)  # fmt: skip

ERROR = _object(
    {
        "error": _object(
            {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
            ("message", "type", "param", "code"),
        )
    },
    ("error",),
)
_ANSWER: Schema = {"type": "object", "required": ["id", "object", "model"]}
_ERRORS = {
    400: "the request is wrong; `param` names the field",
    401: "no known API key",
    403: "this API key may not do that",
    404: "no such model",
    408: "the body took too long",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "a limit is reached: come again after Retry-After seconds",
    500: "the engine failed",
    503: "nothing can serve this now: come again after Retry-After seconds",
}


def _responses(*codes: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(code): {"description": _ERRORS[code], "content": content} for code in codes}


def _generation(body: Schema) -> dict[str, Any]:
    done = {
        "description": "the answer; events when `stream` is true",
        "content": {"application/json": {"schema": _ANSWER}, "text/event-stream": {}},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": done, **_responses(*_ERRORS)},
        "security": [{"bearer": []}],
    }


# The prefix of an answer's id -> (path, what the document says of it).
GENERATION: dict[str, tuple[str, dict[str, Any]]] = {
    "cmpl": ("/v1/completions", _generation(COMPLETION)),
    "chatcmpl": ("/v1/chat/completions", _generation(CHAT)),
    "resp": ("/v1/responses", _generation(RESPONSE)),
}


def describe(app: FastAPI) -> None:
    """Complete the document that FastAPI makes: errors, the bearer token, no 422."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            parts = document.setdefault("components", {})
            parts["schemas"] = {"Error": ERROR}
            parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _complete(path, operation)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(path: str, operation: dict[str, Any]) -> None:
    operation["responses"].pop("422", None)  # this server's own readers answer 400
    if path.startswith("/v1/models"):
        operation["security"] = [{"bearer": []}]
        operation["responses"] |= _responses(401, 503, *([404] if "{" in path else []))
    elif path == "/readyz":
        operation["responses"]["503"] = {"description": "the store has not been seen yet"}
    elif path == "/metrics":
        operation["responses"]["200"] = {"description": "metrics", "content": {"text/plain": {}}}
