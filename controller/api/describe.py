"""What does /openapi.json say beyond the types? Errors and security of every route, examples.

Kept in one place so that no handler repeats it; the schemas of the bodies are the types themselves.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .examples import ANSWERS, STREAMS

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "next_step", "exit_code"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "next_step": {"type": "string"},
                "exit_code": {"type": "integer", "description": "what `moectl` ends with"},
                "mistakes": {"type": "array", "items": {"type": "object"}},
                "reasons": {"type": "array", "items": {"type": "string"}},
            },
        }
    },
}
EXAMPLE = {
    "error": {
        "type": "ConflictError",
        "message": "model/chat: parallelism.experts belongs to gitops (commit 1a2b3c, chat.yaml)",
        "next_step": "change it there, or repeat with --take",
        "exit_code": 3,
    }
}
ERRORS = {
    "400": "the request is not understood",
    "401": "no token, or an unknown one",
    "403": "the token's role may not do this",
    "404": "nothing of that name is known",
    "409": "another operation, a newer generation or another owner is in the way",
    "422": "refused: mistakes in a spec, or no placement fits",
    "429": "too many requests in hand",
    "503": "the store does not answer; repeat with the same operation_id",
}


def describe(app: FastAPI) -> None:
    """Make the app answer /openapi.json with the whole description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = complete(made)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the errors and the security of every operation."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    components.setdefault("schemas", {})["Error"] = ERROR_SCHEMA
    for path, item in document["paths"].items():
        for method, operation in item.items():
            _show(operation, (method, path))
            _complete(operation, is_open=path == "/v1/healthz")
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    return document


def _show(operation: dict[str, Any], route: tuple[str, str]) -> None:
    """Put the example of a good answer in; a stream is text, not JSON."""
    good = next(r for status, r in operation["responses"].items() if status.startswith("2"))
    if route in STREAMS:
        text = {"schema": {"type": "string"}, "example": STREAMS[route]}
        good["content"] = {"text/event-stream": text}
    elif route in ANSWERS:
        good.setdefault("content", {}).setdefault("application/json", {})["example"] = ANSWERS[
            route
        ]


def _complete(operation: dict[str, Any], is_open: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own form; ours is 400, and 422 means a refusal
    content = {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/Error"},
            "example": EXAMPLE,
        }
    }
    if is_open:
        responses["503"] = {"description": "the store was not read yet"}
        return
    operation["security"] = [{"token": []}]
    for status, meaning in ERRORS.items():
        responses.setdefault(status, {"description": meaning, "content": content})
