"""The controller's HTTP application: routes and errors around `Services`. Makes no process."""

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from ...core.errors import UsageError
from . import answers
from .routes import VERSION, router
from .services import Services

BODY_BYTES_MAX = 16 * 2**20  # the largest spec file that the CLI reads


def create_app(services: Services) -> FastAPI:
    """The app over these services; /openapi.json describes it."""
    app = FastAPI(title="moectl", version=VERSION, docs_url=None, redoc_url=None)
    app.state.services = services
    app.include_router(router)
    app.add_middleware(BodyLimit)
    answers.install(app)
    return app


class BodyLimit:
    """Refuses a body that says it is larger than any spec, before it is read into memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers = dict(scope.get("headers") or ())
        length = headers.get(b"content-length", b"0").decode("latin-1")
        is_chunked = b"transfer-encoding" in headers  # it does not say how large it is
        if is_chunked or not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            error = UsageError(
                f"a body of {'unknown length' if is_chunked else length + ' bytes'} is refused",
                next_step=f"send at most {BODY_BYTES_MAX} bytes with a Content-Length",
            )
            await answers.answer(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
