"""Which paths does the gateway answer, and what does each do? Thin: check, serve, answer.

The OpenAI paths need a bearer token; health, readiness and metrics do not, and say nothing about
requests or tokens.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ...core.records import TokenRecord
from .admission import Allowance, Slots, authenticate
from .api_errors import ApiError, forbidden, unavailable
from .asks import Ask, read_chat, read_completion
from .config import GatewayConfig
from .fields import parse_object
from .fleet import Directory
from .metrics import Metrics
from .openapi import GENERATION
from .responses import read_response
from .serving import Name, Service
from .transport import EventStream, check_declared_length, read_body, unless_gone

_BODY_STALL_S = 30.0  # a body arrives in milliseconds; slower is a client that holds us up

Reader = Callable[[dict[str, Any], int], Ask]


class Gateway:
    """What the routes share."""

    def __init__(self, config: GatewayConfig, directory: Directory) -> None:
        self.config = config
        self.directory = directory
        self.metrics = Metrics()
        self.service = Service(directory, self.metrics)
        allowance = Allowance(
            config.inflight_max,
            config.inflight_per_token_max,
            config.requests_per_minute_max,
            config.inflight_per_tenant_max,
            config.requests_per_minute_per_tenant_max,
        )
        self.slots = Slots(allowance, time.monotonic)

    def authenticate(self, request: Request) -> TokenRecord:
        """The caller; raises ApiError 401, or 503 before the tokens are known."""
        if not self.directory.is_ready:
            raise unavailable("the gateway has not seen the store yet", retry_after_s=1)
        return authenticate(request.headers.get("authorization"), self.directory.tokens)


def build_router(gateway: Gateway) -> APIRouter:
    """All routes."""
    router = APIRouter()
    _add_probes(router, gateway)
    _add_models(router, gateway)
    _add_generation(router, gateway, "cmpl", read_completion)
    _add_generation(router, gateway, "chatcmpl", read_chat)
    _add_generation(router, gateway, "resp", read_response)
    return router


def _add_probes(router: APIRouter, gateway: Gateway) -> None:
    @router.get("/healthz", tags=["probes"])
    async def healthz() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    @router.get("/readyz", tags=["probes"])
    async def readyz(request: Request) -> JSONResponse:
        """The store has been seen; to a token also its models, and how many workers serve each."""
        is_ready = gateway.directory.is_ready
        content: dict[str, Any] = {"status": "ready" if is_ready else "waiting for the store"}
        if is_ready and request.headers.get("authorization"):
            caller = gateway.authenticate(request)
            names = [name for name, _created in gateway.service.models.names(caller)]
            content["models"] = {n: gateway.directory.serving_count(n) for n in names}
        return JSONResponse(content, status_code=200 if is_ready else 503)

    @router.get("/metrics", tags=["probes"])
    async def metrics() -> Response:
        """Prometheus text format."""
        _refresh(gateway)
        return Response(gateway.metrics.render(), media_type="text/plain; version=0.0.4")


def _refresh(gateway: Gateway) -> None:
    """Set what is read off, not counted."""
    metrics, directory = gateway.metrics, gateway.directory
    metrics.inflight.set(gateway.slots.held)
    metrics.silent_workers(directory.silences)
    for name in directory.specs:
        metrics.at_workers.labels(name).set(directory.load(name))
        metrics.waiting.labels(name).set(directory.waiting[name])


def _add_models(router: APIRouter, gateway: Gateway) -> None:
    @router.get("/v1/models", tags=["models"])
    async def list_models(request: Request) -> dict[str, Any]:
        """Every declared model that the token may use."""
        caller = gateway.authenticate(request)
        listed = [_model_card(*item) for item in gateway.service.models.names(caller)]
        return {"object": "list", "data": listed}

    @router.get("/v1/models/{name}", tags=["models"])
    async def get_model(request: Request, name: str) -> dict[str, Any]:
        """One model, with the context that a request to it may fill."""
        model = await gateway.service.models.get(name, gateway.authenticate(request))
        card = _model_card(model.name, model.created)
        return card | {"max_model_len": model.context_tokens}


def _model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "moectl"}


def _add_generation(router: APIRouter, gateway: Gateway, prefix: str, reader: Reader) -> None:
    async def generate(request: Request) -> Response:
        """Generate text, streamed or whole, in OpenAI's form."""
        caller = gateway.authenticate(request)
        # Ours, since a client's own could collide with another's at a worker.
        name = Name(f"{prefix}-{secrets.token_hex(12)}", request.state.request_id)
        with contextlib.ExitStack() as held:
            held.enter_context(gateway.slots.take(caller.name, caller.tenant))
            ask = await _read_ask(gateway, request, reader)
            request.state.model = ask.model
            _check_rights(ask, caller)
            exchange = await gateway.service.open(ask, name, caller)
            headers = gateway.slots.headers(caller.name)
            if not ask.is_stream:
                body = await unless_gone(request, gateway.service.collect(exchange))
                return JSONResponse(body, headers=headers)
            return EventStream(
                gateway.service.stream(exchange),
                headers,
                stall_s=gateway.config.stall_s,
                on_close=held.pop_all().close,
            )

    path, described = GENERATION[prefix]
    router.add_api_route(
        path,
        generate,
        methods=["POST"],
        tags=["generation"],
        response_model=None,
        operation_id=f"create_{prefix}",
        openapi_extra=described,
    )


def _check_rights(ask: Ask, caller: TokenRecord) -> None:
    if ask.wishes.priority > 0 and caller.role == "viewer":
        raise forbidden("a priority above 0 needs an operator's API key", "priority")


async def _read_ask(gateway: Gateway, request: Request, reader: Reader) -> Ask:
    config = gateway.config
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send the body as application/json", code="unsupported_media_type")
    check_declared_length(request, config.body_bytes_max)
    body = await read_body(request, config.body_bytes_max, _BODY_STALL_S)
    return reader(parse_object(body), config.choices_max)
