"""How does an error leave the process? The exit code, and the what / where / next lines on stderr.

Every expected error is a `MoectlError` and carries its exit code; the API sends the same codes in
its error bodies, so that a refusal means the same number whether it was decided here or in the
controller. Never prints a traceback for an expected error, and never hides an unexpected one.
"""

import sys
from typing import Any, TextIO

from ..core.errors import (
    AuthError,
    ConflictError,
    DeadlineError,
    InvariantError,
    MoectlError,
    RefusedError,
    UnplaceableError,
    UsageError,
)

OK = 0
ERROR = 1
USAGE = 2
REFUSED = 3
UNPLACEABLE = 4
TIMEOUT = 5
INVARIANT = 70
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def error_from_body(status: int, body: Any, where: str) -> MoectlError:
    """The error that an API answer means; `body` is the decoded JSON or None.

    `where` names the call ("POST /v1/apply") for answers that are not in our form.
    """
    detail = body.get("error") if isinstance(body, dict) else None
    if not isinstance(detail, dict):
        return MoectlError(
            f"{where} answered {status} in a form this client does not know",
            next_step="compare `moectl version` with the version of the fleet",
        )
    message = str(detail.get("message") or f"{where} answered {status}")
    next_step = str(detail.get("next_step") or "")
    code = detail.get("exit_code")
    return _typed_error(str(detail.get("type", "")), message, next_step, code)


def _typed_error(kind: str, message: str, next_step: str, code: Any) -> MoectlError:
    known: dict[str, type[MoectlError]] = {
        "ConflictError": ConflictError,
        "AuthError": AuthError,
        "DeadlineError": DeadlineError,
        "UsageError": UsageError,
        "UnplaceableError": UnplaceableError,
    }
    by_code: dict[int, type[MoectlError]] = {
        USAGE: UsageError,
        REFUSED: RefusedError,
        UNPLACEABLE: UnplaceableError,
        TIMEOUT: DeadlineError,
    }
    cls = known.get(kind) or (by_code.get(code) if isinstance(code, int) else None) or MoectlError
    return cls(message, next_step=next_step)


def report(error: BaseException, stream: TextIO | None = None) -> int:
    """Print an error for a person and return the exit code it means."""
    out = stream or sys.stderr
    if isinstance(error, MoectlError):
        print(f"error: {error.message}", file=out)
        if error.next_step:
            print(f"next:  {error.next_step}", file=out)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=out)
        return INTERRUPTED
    if isinstance(error, InvariantError):
        print(f"bug in moectl: {error}", file=out)
        return INVARIANT
    raise error
