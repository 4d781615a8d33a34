"""How do answers travel over HTTP? The streaming response, and noticing that a client is gone.

The server-sent events response ends its source as soon as the client disconnects or takes nothing
for `stall_s`; whatever feeds it then cancels its work within a step.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from .api_errors import ApiError

T = TypeVar("T")
Message = MutableMapping[str, Any]


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class EventStream(Response):
    """A response of server-sent events; `on_close` is called once, however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        stall_s: float,
        on_close: Callable[[], None],
    ) -> None:
        # A proxy that buffers would undo streaming.
        fixed = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(headers={**fixed, **headers})
        del self.headers["content-length"]
        self._source = source
        self._stall_s = stall_s
        self._on_close = on_close

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Send until the source ends, the client goes, or it stalls."""
        work = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            results = await asyncio.gather(work, gone, return_exceptions=True)
            await self._source.aclose()
            self._on_close()
        if isinstance(results[0], Exception) and not isinstance(
            results[0], (OSError, TimeoutError)
        ):
            raise results[0]

    async def _send_all(self, send: Callable[[Message], Awaitable[None]]) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with contextlib.aclosing(self._source) as chunks:
            async for chunk in chunks:
                async with asyncio.timeout(self._stall_s):
                    body = {"type": "http.response.body", "body": chunk, "more_body": True}
                    await send(body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`; cancels it and raises ClientGone when the client disconnects."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def read_body(request: Request, bytes_max: int, stall_s: float) -> bytes:
    """The whole body; raises ApiError 413 or 408, or ClientGone."""
    body = bytearray()
    try:
        async with asyncio.timeout(stall_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > bytes_max:
                    raise _too_large(bytes_max)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, "the body took too long", code="request_timeout") from None


def check_declared_length(request: Request, bytes_max: int) -> None:
    """Refuse a body whose Content-Length is above the limit before reading it."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise _too_large(bytes_max)


def _too_large(bytes_max: int) -> ApiError:
    return ApiError(413, f"the body is above {bytes_max} bytes", code="request_too_large")


async def _until_disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
