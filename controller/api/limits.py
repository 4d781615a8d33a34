"""How much may be asked at once? Bounds on bodies, and on requests in hand per token.

A client that asks without waiting for answers must cost the others nothing: what is over the bound
is refused at once with 429, and nothing is queued.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from ...core.errors import UsageError
from ..auth import digest_of
from . import answers

BODY_BYTES_MAX = 16 * 2**20  # the largest spec file that the CLI reads
INFLIGHT_MAX = 512  # requests in hand, watches included; each holds a few kilobytes
INFLIGHT_PER_TOKEN_MAX = 64  # a screen holds one watch; a pipeline a few calls


class BodyLimit:
    """Refuses a body that says it is larger than any spec, before it is read into memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers = dict(scope.get("headers") or ())
        length = headers.get(b"content-length", b"0").decode("latin-1")
        is_chunked = b"transfer-encoding" in headers  # it does not say how large it is
        is_number = length.isascii() and length.isdecimal() and len(length) < 20
        if is_chunked or not is_number or int(length) > BODY_BYTES_MAX:
            error = UsageError(
                f"a body of {'unknown length' if is_chunked else length + ' bytes'} is refused",
                next_step=f"send at most {BODY_BYTES_MAX} bytes with a Content-Length",
            )
            await answers.answer(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class InflightLimit:
    """Refuses requests over the bounds; counts by the digest of what the client calls itself."""

    def __init__(
        self, app: ASGIApp, total: int = INFLIGHT_MAX, per_token: int = INFLIGHT_PER_TOKEN_MAX
    ) -> None:
        self._app = app
        self._total, self._per_token = total, per_token
        self._held: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] == "/v1/healthz":
            await self._app(scope, receive, send)
            return
        header = dict(scope["headers"]).get(b"authorization", b"")[:4096]
        who = digest_of(header.decode("latin-1"))
        held = self._held.get(who, 0)
        if held >= self._per_token or sum(self._held.values()) >= self._total:
            bound = self._per_token if held >= self._per_token else self._total
            error = answers.TooManyError(
                f"{bound} requests are in hand already", next_step="wait for answers, then repeat"
            )
            await answers.answer(error)(scope, receive, send)
            return
        self._held[who] = held + 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]
