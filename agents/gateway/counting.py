"""How are answers counted? A plain ASGI wrapper that sees the status of every response.

Only known routes, declared models and status codes become labels, so that clients cannot make the
metrics grow.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .routes import Gateway

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class CountAnswers:
    """Counts each answer by route, model and status."""

    def __init__(self, app: Application, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass everything through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
            await send(message)

        await self._app(scope, receive, counted)

    def _count(self, scope: Message, status: int) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        model = scope.get("state", {}).get("model", "")
        label = model if model in self._gateway.directory.specs else ""
        self._gateway.metrics.requests.labels(route, label, str(status)).inc()
