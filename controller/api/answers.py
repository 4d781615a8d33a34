"""How does an error become an HTTP answer? One table from our classes to status codes.

    {"error": {"type", "message", "next_step", "exit_code", "mistakes"?, "reasons"?}}

The exit code is the one that the command line ends with, so a refusal means the same number whether
it was decided here or in the CLI.
"""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...core.errors import (
    AuthError,
    ConflictError,
    DeadlineError,
    MoectlError,
    NotFoundError,
    RefusedError,
    SpecError,
    StoreError,
    UnplaceableError,
    UsageError,
)

LOG = logging.getLogger(__name__)

# The first class that fits decides, so subclasses stand before their parents.
STATUS: tuple[tuple[type[MoectlError], int], ...] = (
    (AuthError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (SpecError, 422),
    (RefusedError, 422),
    (UnplaceableError, 422),
    (UsageError, 400),
    (DeadlineError, 503),
    (StoreError, 503),
    (MoectlError, 500),
)


class UnauthenticatedError(AuthError):
    """No token or an unknown one: 401, where a known one that may not is 403."""


class TooManyError(MoectlError):
    """More in hand than the API takes: 429, nothing was done."""


def status_of(error: MoectlError) -> int:
    """The HTTP status that an error means."""
    if isinstance(error, UnauthenticatedError):
        return 401
    if isinstance(error, TooManyError):
        return 429
    return next(status for cls, status in STATUS if isinstance(error, cls))


def body_of(error: MoectlError) -> dict[str, Any]:
    """The error as the API tells it."""
    kind = "AuthError" if isinstance(error, AuthError) else type(error).__name__
    detail: dict[str, Any] = {
        "type": kind,
        "message": error.message,
        "next_step": error.next_step,
        "exit_code": error.exit_code,
    }
    if isinstance(error, SpecError):
        detail["mistakes"] = [
            {"file": m.file, "line": m.line, "path": m.path, "reason": m.reason, "fix": m.fix}
            for m in error.mistakes
        ]
    if isinstance(error, UnplaceableError):
        detail["reasons"] = list(error.reasons)
    return {"error": detail}


def answer(error: MoectlError) -> JSONResponse:
    """The whole answer."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthenticatedError) else None
    if isinstance(error, TooManyError):
        headers = {"Retry-After": "1"}
    return JSONResponse(body_of(error), status_of(error), headers)


def install(app: FastAPI) -> None:
    """Make every error of the app leave in this form."""

    @app.exception_handler(MoectlError)
    async def _ours(request: Request, error: MoectlError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0] if error.errors() else {"loc": (), "msg": "malformed"}
        where = ".".join(str(part) for part in first["loc"])
        return answer(UsageError(f"{where}: {first['msg']}", next_step="see /openapi.json"))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        ours = UsageError(f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(body_of(ours), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        # The loop's top of the API: a bug in one request must not end the server.
        LOG.exception("%s %s failed on a bug", request.method, request.url.path)
        ours = MoectlError(
            f"{type(error).__name__} in the controller: a bug", next_step="see its log"
        )
        return JSONResponse(body_of(ours), 500)
