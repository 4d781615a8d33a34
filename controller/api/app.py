"""The controller's HTTP application: routes and errors around `Services`. Makes no process."""

from fastapi import FastAPI
from starlette.middleware import Middleware

from . import answers, reads, tokens, writes
from .audit import Audit, to_log
from .describe import describe
from .limits import BODY_BYTES_MAX as BODY_BYTES_MAX
from .limits import BodyLimit, InflightLimit
from .reads import VERSION
from .services import Services


def create_app(services: Services) -> FastAPI:
    """The app over these services; /openapi.json describes it."""
    app = FastAPI(
        title="moectl",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(Audit, sink=services.audit or to_log),
            Middleware(InflightLimit),
            Middleware(BodyLimit),
        ],
    )
    app.state.services = services
    for router in (reads.router, writes.router, tokens.router):
        app.include_router(router)
    answers.install(app)
    describe(app)
    return app
