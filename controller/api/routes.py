"""Which paths does the API have? Thin handlers: authorise, call the pure decision or view, answer.

Reads come from the mirror and never wait for the store; writes go through `Services.carry_out`. The
paths, roles and errors are listed in docs/api.md, which a test compares with this file.
"""

import os
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ...core.errors import AuthError, NotFoundError, UsageError
from ...core.records import TokenRecord, to_plain
from .. import intents, views
from ..admission import Ground
from ..auth import Role, authenticate, authorise
from ..intents import Accepted, Caller
from .answers import UnauthenticatedError
from .requests import ApplyBody, ScaleBody
from .services import Services, accepted_body, new_operation_id, stale
from .watch import fleet_events

VERSION = "0.1.0"
router = APIRouter(prefix="/v1")


def services_of(request: Request) -> Services:
    """What the server wired into the app."""
    services: Services = request.app.state.services
    return services


def needs(role: Role) -> Callable[[Request], TokenRecord]:
    """A dependency that lets a request pass only with a token of this role or above."""

    def check(request: Request) -> TokenRecord:
        services = services_of(request)
        not_ready = stale(services)
        if not_ready is not None:
            raise not_ready
        try:
            header = request.headers.get("authorization")
            token = authenticate(header, services.mirror.snapshot())
        except AuthError as error:
            raise UnauthenticatedError(error.message, next_step=error.next_step) from error
        authorise(token, role)
        return token

    return check


Viewer = Annotated[TokenRecord, Depends(needs(Role.VIEWER))]
Operator = Annotated[TokenRecord, Depends(needs(Role.OPERATOR))]
Parts = Annotated[Services, Depends(services_of)]


def caller_of(
    token: TokenRecord, services: Services, operation_id: str | None, dry: bool
) -> Caller:
    """Who asks, with an operation id in any case."""
    return Caller(token.name, services.clock.now(), operation_id or new_operation_id(), dry)


@router.get("/healthz")
async def healthz(services: Parts) -> JSONResponse:
    """Whether the API can answer: 200 once the store was read, 503 before. Needs no token."""
    is_ready = services.mirror.is_primed and bool(services.mirror.snapshot().tokens)
    is_leader = services.loop is not None and services.loop.is_leader
    body = {"status": "ok" if is_ready else "starting", "leader": is_leader}
    return JSONResponse(body, 200 if is_ready else 503)


@router.get("/version")
async def version(token: Viewer, services: Parts) -> dict[str, Any]:
    """Versions of the API and of what it serves."""
    return {"version": VERSION, "api": "v1", "cluster": services.cluster, "pid": os.getpid()}


@router.get("/fleet")
async def fleet(token: Viewer, services: Parts) -> Response:
    """Everything at one moment."""
    return Response(services.fleet_json(), media_type="application/json")


@router.get("/watch")
async def watch(token: Viewer, services: Parts) -> StreamingResponse:
    """The fleet as server-sent events: at once, and after every change."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        fleet_events(services), media_type="text/event-stream", headers=headers
    )


@router.get("/nodes")
async def nodes(token: Viewer, services: Parts) -> list[dict[str, Any]]:
    """Live nodes."""
    return views.nodes(services.mirror.snapshot())


@router.get("/models")
async def models(token: Viewer, services: Parts) -> list[dict[str, Any]]:
    """Declared models with status, placement, workers and running change."""
    snapshot = services.mirror.snapshot()
    return [views.model(name, snapshot, services.limits) for name in snapshot.models()]


@router.get("/models/{name}")
async def model(name: str, token: Viewer, services: Parts) -> dict[str, Any]:
    """One model."""
    snapshot = services.mirror.snapshot()
    if name not in snapshot.models():
        raise NotFoundError(f"no model {name!r} is declared")
    return views.model(name, snapshot, services.limits)


@router.post("/models/{name}/scale", status_code=202)
async def scale(name: str, body: ScaleBody, token: Operator, services: Parts) -> dict[str, Any]:
    """Spread a model's experts over another number of devices."""
    caller = caller_of(token, services, body.operation_id, body.dry_run)

    def decide(ground: Ground) -> Accepted:
        return intents.decide_scale(
            name, str(body.experts), ground, caller, body.expected_generation
        )

    return accepted_body(await services.carry_out(decide), body.dry_run)


@router.get("/transitions")
async def transitions(
    token: Viewer, services: Parts, model: str | None = None
) -> list[dict[str, Any]]:
    """Changes of placements, oldest first."""
    return views.transitions(services.mirror.snapshot(), services.limits, model)


@router.get("/transitions/{operation_id}")
async def transition(
    operation_id: str, token: Viewer, services: Parts, steps: bool = False
) -> dict[str, Any]:
    """One operation as its latest attempt stands; `steps=true` adds steps and placements."""
    snapshot = services.mirror.snapshot()
    seen = snapshot.transitions.get(operation_id)
    if seen is None:
        raise NotFoundError(f"no operation {operation_id!r} is known")
    view = views.transition(seen.value, snapshot, services.limits)
    if steps:
        latest = to_plain(snapshot.transitions[view["record_id"]].value)
        view |= {key: latest[key] for key in ("steps", "old", "new", "model_spec")}
    return view


@router.post("/transitions/{operation_id}/cancel", status_code=202)
async def cancel(operation_id: str, token: Operator, services: Parts) -> dict[str, Any]:
    """Forfeit an operation that has not been committed."""
    caller = caller_of(token, services, None, False)
    accepted = await services.carry_out(
        lambda ground: intents.decide_cancel(operation_id, ground, caller)
    )
    return accepted_body(accepted, False)


@router.get("/events")
async def events(
    token: Viewer, services: Parts, subject: str | None = None
) -> list[dict[str, Any]]:
    """What happened in the last hour or two, oldest first."""
    return views.events(services.mirror.snapshot(), subject)


@router.get("/specs/{kind}")
async def specs(kind: str, token: Viewer, services: Parts) -> list[dict[str, Any]]:
    """Declared documents of a kind."""
    found = services.mirror.snapshot().specs
    return [to_plain(seen.value) for key, seen in sorted(found.items()) if key[0] == kind]


@router.get("/specs/{kind}/{name}")
async def spec(kind: str, name: str, token: Viewer, services: Parts) -> dict[str, Any]:
    """One declared document."""
    seen = services.mirror.snapshot().specs.get((kind, name))
    if seen is None:
        raise NotFoundError(f"no {kind} {name!r} is declared")
    plain: dict[str, Any] = to_plain(seen.value)
    return plain


@router.delete("/specs/{kind}/{name}")
async def delete_spec(
    kind: str, name: str, token: Operator, services: Parts, dry_run: bool = False
) -> dict[str, Any]:
    """Take a declaration away, and with it what it asked for."""
    if kind != "Model":
        authorise(token, Role.ADMIN)
    caller = caller_of(token, services, None, dry_run)
    accepted = await services.carry_out(
        lambda ground: intents.decide_delete(kind, name, ground, caller)
    )
    return accepted_body(accepted, dry_run)


@router.post("/apply")
async def apply(body: ApplyBody, token: Operator, services: Parts) -> dict[str, Any]:
    """Declare documents. All of them are checked before the first is written."""
    declared = intents.parse_declarations(body.documents)
    if any(document.kind != "Model" for document in declared):
        authorise(token, Role.ADMIN)
    operation_id = body.operation_id or new_operation_id()
    ids = operation_ids(declared, operation_id)
    results: list[dict[str, Any]] = []
    for is_rehearsal in (True, False):
        if is_rehearsal is False and body.dry_run:
            break
        results = []
        known: list[intents.Declaration] = []
        for document, own_id in zip(declared, ids, strict=True):
            caller = caller_of(token, services, own_id, is_rehearsal or body.dry_run)
            results.append(await _apply_one(document, caller, known, services))
            known.append(document)
    return {"results": results, "operation_id": operation_id, "dry_run": body.dry_run}


async def _apply_one(
    document: intents.Declaration,
    caller: Caller,
    before: list[intents.Declaration],
    services: Services,
) -> dict[str, Any]:
    """One document, judged as if those before it in the request were declared already."""

    def decide(ground: Ground) -> Accepted:
        return intents.decide_apply(document, intents.with_declared(ground, before), caller)

    return (await services.carry_out(decide, *intents.folders(document))).body


def operation_ids(declared: list[intents.Declaration], operation_id: str) -> list[str]:
    """One operation a model: the given id for a single model, with its name for several."""
    models = sum(document.kind == "Model" for document in declared)
    if models > 1 and len(operation_id) > 32:
        raise UsageError("operation_id is too long for several models; use 32 characters")
    return [
        f"{operation_id}-{document.name}"[:63] if models > 1 else operation_id
        for document in declared
    ]
