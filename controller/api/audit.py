"""Who wrote what, when, and with which outcome? One JSON line for every write, refused ones too.

    {"at", "token", "role", "tenant", "method", "path", "operation_id", "dry_run", "status", "ms"}

It names the token by its name, never by its text, and holds no body: specs are in the store. The
file is opened for appending only and is private to its owner.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("moectl.audit")
READS = ("GET", "HEAD", "OPTIONS")

Sink = Callable[[dict[str, Any]], None]


def to_log(entry: dict[str, Any]) -> None:
    """The sink of a controller that was given no audit file."""
    LOG.info("%s", json.dumps(entry, separators=(",", ":")))


def to_file(path: Path) -> Sink:
    """A sink that appends lines to a private file; a line is written whole or not at all."""

    def write(entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line)
        except OSError as error:  # a full disk must not end the service; the log has the entry
            LOG.error("audit file %s: %s; %s", path, error, line.decode())
        finally:
            os.close(descriptor)

    return write


class Audit:
    """Middleware: writes an entry after each answer to a request that could change something."""

    def __init__(self, app: ASGIApp, sink: Sink) -> None:
        self._app = app
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] in READS:
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._sink(_entry(scope, status or 500, time.monotonic() - started))


def note(scope: Scope, **facts: Any) -> None:
    """Facts about the request in hand that only a handler knows, for its entry."""
    scope.setdefault("state", {}).setdefault("audit", {}).update(facts)


def _entry(scope: Scope, status: int, seconds: float) -> dict[str, Any]:
    facts = scope.get("state", {}).get("audit", {})
    return {
        "at": round(time.time(), 3),
        "token": facts.get("token", ""),
        "role": facts.get("role", ""),
        "tenant": facts.get("tenant", ""),
        "method": scope["method"],
        "path": scope["path"][:256],
        "operation_id": facts.get("operation_id", ""),
        "dry_run": facts.get("dry_run", False),
        "status": status,
        "ms": round(seconds * 1000, 1),
    }
