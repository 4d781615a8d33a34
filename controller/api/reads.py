"""Which paths does the API have to look? Thin handlers: authorise, call the pure view, answer.

Reads come from the mirror and never wait for the store, and from `Services.seen_by`, which leaves
out what the token may not see. The paths, roles and errors are listed in docs/api.md, which a test
compares with this file.
"""

import json
import os
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ...core.errors import NotFoundError
from ...core.records import TokenRecord, to_plain
from .. import views
from .guard import Parts, Viewer
from .paging import Page, cut, page_of
from .services import Services
from .versions import tagged
from .watch import fleet_events, log_events, transition_events

VERSION = "0.1.0"
router = APIRouter(prefix="/v1")
Paging = Annotated[Page, Depends(page_of)]
LastEventId = Annotated[str, Header(alias="Last-Event-ID", max_length=256)]
WATCH_SECONDS_MAX = 3600.0  # of one operation: no phase of any takes longer
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get("/healthz")
async def healthz(services: Parts) -> JSONResponse:
    """Whether the API can answer: 200 once the store was read, 503 before. Needs no token."""
    is_ready = services.mirror.is_primed and bool(services.mirror.snapshot().tokens)
    is_leader = services.loop is not None and services.loop.is_leader
    body = {
        "status": "ok" if is_ready else "starting",
        "leader": is_leader,
        "store_age_s": services.mirror.age_s(),
    }
    return JSONResponse(body, 200 if is_ready else 503)


@router.get("/version")
async def version(token: Viewer, services: Parts) -> dict[str, Any]:
    """Versions of the API and of what it serves."""
    return {"version": VERSION, "api": "v1", "cluster": services.cluster, "pid": os.getpid()}


@router.get("/whoami")
async def whoami(token: Viewer) -> dict[str, Any]:
    """What the token in hand may do."""
    return {"name": token.name, "role": token.role, "tenant": token.tenant}


@router.get("/fleet")
async def fleet(token: Viewer, services: Parts) -> Response:
    """Everything at one moment."""
    return Response(services.fleet_json(token), media_type="application/json")


@router.get("/watch")
async def watch(token: Viewer, services: Parts, last_id: LastEventId = "") -> StreamingResponse:
    """The fleet as server-sent events: at once, and after every change."""
    stream = fleet_events(services, token, last_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


@router.get("/nodes")
async def nodes(
    token: Viewer, services: Parts, page: Paging, request: Request, response: Response
) -> list[dict[str, Any]]:
    """Live nodes."""
    found = views.nodes(services.seen_by(token))
    items: list[dict[str, Any]] = cut(found, page, _by_name, request.url, response)
    return items


@router.get("/nodes/{node}/devices/{device}/pages")
async def pages(node: str, device: str, token: Viewer, services: Parts) -> dict[str, Any]:
    """What every page of a device holds, a few seconds old; spans are [first, count, owner, what].

    Pages of models that the token may not see are told as in use, and no more.
    """
    found = await services.mirror.read(services.mirror.keys.page_map(node, device))
    if found is None:
        raise NotFoundError(
            f"no pages of device {node}/{device} are known",
            next_step="`moectl get pages` lists the devices",
        )
    return views.pages(json.loads(found), services.seen_by(token))


@router.get("/models")
async def models(
    token: Viewer, services: Parts, page: Paging, request: Request, response: Response
) -> list[dict[str, Any]]:
    """Declared models with status, placement, workers and running change."""
    snapshot = services.seen_by(token)
    found = [views.model(name, snapshot, services.limits) for name in snapshot.models()]
    items: list[dict[str, Any]] = cut(found, page, _by_name, request.url, response)
    return items


@router.get("/models/{name}", responses={304: {"description": "the ETag given is the newest"}})
async def model(
    name: str, token: Viewer, services: Parts, request: Request, response: Response
) -> Any:
    """One model. Its ETag is the generation that If-Match of a write is compared with."""
    snapshot = services.seen_by(token)
    if name not in snapshot.models():
        raise NotFoundError(f"no model {name!r} is declared")
    found = views.model(name, snapshot, services.limits)
    response.headers["ETag"] = f'"{found["generation"]}"'
    return found  # its status changes without its generation: never 304


@router.get("/transitions")
async def transitions(
    token: Viewer,
    services: Parts,
    page: Paging,
    request: Request,
    response: Response,
    model: Annotated[str | None, Query(max_length=64)] = None,
) -> list[dict[str, Any]]:
    """Changes of placements, oldest first."""
    found = views.transitions(services.seen_by(token), services.limits, model)
    items: list[dict[str, Any]] = cut(found, page, _by_acceptance, request.url, response)
    return items


@router.get("/transitions/{operation_id}")
async def transition(
    operation_id: str, token: Viewer, services: Parts, steps: bool = False
) -> dict[str, Any]:
    """One operation as its latest attempt stands; `steps=true` adds steps and placements."""
    snapshot = services.seen_by(token)
    view = _operation(operation_id, services, token)
    if steps and "record_id" in view:
        latest = to_plain(snapshot.transitions[view["record_id"]].value)
        view |= {key: latest[key] for key in ("steps", "old", "new", "model_spec")}
    return view


@router.get("/transitions/{operation_id}/watch")
async def watch_transition(
    operation_id: str,
    token: Viewer,
    services: Parts,
    seconds: Annotated[float, Query(gt=0, le=WATCH_SECONDS_MAX)] = WATCH_SECONDS_MAX,
) -> StreamingResponse:
    """One operation as server-sent events: at once, after every change, until it is final."""
    _operation(operation_id, services, token)  # an unknown one is 404, not an empty stream
    stream = transition_events(services, token, operation_id, seconds)
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


@router.get("/events")
async def events(
    token: Viewer,
    services: Parts,
    page: Paging,
    request: Request,
    response: Response,
    subject: Annotated[str | None, Query(max_length=256)] = None,
) -> list[dict[str, Any]]:
    """What happened in the last hour or two, oldest first."""
    found = views.events(services.seen_by(token), subject)
    items: list[dict[str, Any]] = cut(found, page, _by_id, request.url, response)
    return items


@router.get("/events/watch")
async def watch_events(
    token: Viewer,
    services: Parts,
    last_id: LastEventId = "",
    subject: Annotated[str | None, Query(max_length=256)] = None,
) -> StreamingResponse:
    """The event log as server-sent events; `Last-Event-ID` goes on after the last one received."""
    stream = log_events(services, token, subject, last_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


@router.get("/specs/{kind}")
async def specs(
    kind: str, token: Viewer, services: Parts, page: Paging, request: Request, response: Response
) -> list[dict[str, Any]]:
    """Declared documents of a kind."""
    declared = services.seen_by(token).specs
    found = [to_plain(seen.value) for key, seen in sorted(declared.items()) if key[0] == kind]
    items: list[dict[str, Any]] = cut(found, page, _by_name, request.url, response)
    return items


@router.get(
    "/specs/{kind}/{name}", responses={304: {"description": "the ETag given is the newest"}}
)
async def spec(
    kind: str, name: str, token: Viewer, services: Parts, request: Request, response: Response
) -> Any:
    """One declared document, with the owner and generation of every field."""
    seen = services.seen_by(token).specs.get((kind, name))
    if seen is None:
        raise NotFoundError(f"no {kind} {name!r} is declared")
    return tagged(views.declared(seen.value), seen.value.generation, request, response)


def _operation(operation_id: str, services: Services, token: TokenRecord) -> dict[str, Any]:
    view = views.operation(operation_id, services.seen_by(token), services.limits)
    if view is None:
        raise NotFoundError(f"no operation {operation_id!r} is known")
    return view


def _by_name(item: dict[str, Any]) -> tuple[Any, ...]:
    return (item["name"],)


def _by_id(item: dict[str, Any]) -> tuple[Any, ...]:
    return (item["at"], item["id"])


def _by_acceptance(item: dict[str, Any]) -> tuple[Any, ...]:
    return (item["accepted_at"], item["operation_id"])
