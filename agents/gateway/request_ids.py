"""By which id do a client and the logs talk about the same request? `X-Request-Id`, in and out.

A client's own id is taken when it is short and plain, so that it can stand in a log line; otherwise
one is made. It names the request towards people only: workers get ids of the gateway's making.
"""

import re
import secrets

from starlette.datastructures import MutableHeaders

from .counting import Application, Message, Receive, Send

HEADER = "x-request-id"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class RequestIds:
    """Puts `request_id` into the request's state, and the header on every answer."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass everything through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _given(scope) or f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self._app(scope, receive, named)


def _given(scope: Message) -> str | None:
    for key, value in scope["headers"]:
        if key == HEADER.encode():
            text = value.decode("latin-1")
            return text if _PLAIN.fullmatch(text) else None
    return None
