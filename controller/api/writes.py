"""Which paths does the API have to change something? Handlers around the pure intents.

Every write goes through `Services.carry_out`, so a dry run is judged by the same code on the same
records and differs only in writing nothing. Models of other tenants are not there: 404.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request

from ...core.errors import UsageError
from ...core.fields import AUTOSCALER, GITOPS
from ...core.plan import Pace
from ...core.records import TokenRecord
from .. import intents
from ..admission import Ground
from ..auth import Role, authorise
from ..intents import Accepted, Caller
from ..ownership import Writer
from ..tenancy import require_model, require_name
from .guard import Operator, Parts, caller_of, services_of
from .requests import ApplyBody, ReleaseBody, ScaleBody
from .services import Services, accepted_body, new_operation_id
from .versions import IfMatch, expected

router = APIRouter(prefix="/v1")
Decide = Callable[[Ground], Accepted]


@router.post("/models/{name}/scale", status_code=202)
async def scale(
    name: str,
    body: ScaleBody,
    token: Operator,
    services: Parts,
    request: Request,
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Spread a model's experts over another number of devices."""
    writer = Writer(AUTOSCALER if body.manager == AUTOSCALER else token.name, body.take)
    caller = caller_of(request, token, body.operation_id, body.dry_run, writer)
    caller = replace(caller, pace=body.pace)
    generation = expected(if_match, body.expected_generation)
    if body.pace is Pace.PROMPT and services.loop is not None:
        services.loop.press()

    def decide(ground: Ground) -> Accepted:
        return intents.decide_scale(name, str(body.experts), ground, caller, generation)

    accepted = await services.carry_out(_of_tenant(name, token, decide))
    return accepted_body(accepted, body.dry_run)


@router.post("/models/{name}/release")
async def release(
    name: str, body: ReleaseBody, token: Operator, services: Parts, request: Request
) -> dict[str, Any]:
    """Give a field back to the owner that it was taken from."""
    caller = caller_of(request, token, None, body.dry_run)

    def decide(ground: Ground) -> Accepted:
        return intents.decide_release("Model", name, body.field, ground, caller)

    accepted = await services.carry_out(_of_tenant(name, token, decide))
    return accepted_body(accepted, body.dry_run)


@router.post("/transitions/{operation_id}/cancel", status_code=202)
async def cancel(
    operation_id: str, token: Operator, services: Parts, request: Request
) -> dict[str, Any]:
    """Forfeit an operation that has not been committed."""
    caller = caller_of(request, token)

    def decide(ground: Ground) -> Accepted:
        seen = services.seen_by(token)
        kept = {k: t for k, t in ground.snapshot.transitions.items() if k in seen.transitions}
        return intents.decide_cancel(operation_id, ground.with_transitions(kept), caller)

    return accepted_body(await services.carry_out(decide), False)


@router.delete("/specs/{kind}/{name}")
async def delete_spec(
    kind: str,
    name: str,
    token: Operator,
    request: Request,
    dry_run: bool = False,
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Take a declaration away, and with it what it asked for."""
    services = services_of(request)
    if kind != "Model":
        authorise(token, Role.ADMIN)
    caller = caller_of(request, token, None, dry_run)
    generation = expected(if_match)

    def decide(ground: Ground) -> Accepted:
        return intents.decide_delete(kind, name, ground, caller, generation)

    decide_here = _of_tenant(name, token, decide) if kind == "Model" else decide
    return accepted_body(await services.carry_out(decide_here), dry_run)


@router.post("/apply")
async def apply(
    body: ApplyBody, token: Operator, services: Parts, request: Request, if_match: IfMatch = None
) -> dict[str, Any]:
    """Declare documents. All of them are checked before the first is written."""
    declared = intents.parse_declarations(body.documents)
    if any(document.kind != "Model" for document in declared):
        authorise(token, Role.ADMIN)
    generation = expected(if_match)
    if generation is not None and len(declared) != 1:
        raise UsageError("If-Match: it can be sent with one document only")
    operation_id = body.operation_id or new_operation_id()
    ids = operation_ids(declared, operation_id)
    writer = _writer(body, token)
    batch = Batch(token, services, generation)
    for is_rehearsal in (True, False):
        if is_rehearsal is False and body.dry_run:
            break
        results = []
        for number, (document, own_id) in enumerate(zip(declared, ids, strict=True)):
            caller = caller_of(request, token, own_id, is_rehearsal or body.dry_run, writer)
            before = declared[:number]
            results.append(await batch.apply_one(document, caller, before))
    return {"results": results, "operation_id": operation_id, "dry_run": body.dry_run}


@dataclass(frozen=True, slots=True)
class Batch:
    """What the documents of one apply have in common."""

    token: TokenRecord
    services: Services
    generation: int | None

    async def apply_one(
        self, document: intents.Declaration, caller: Caller, before: list[intents.Declaration]
    ) -> dict[str, Any]:
        """One document, judged as if those before it in the request were declared already."""

        def decide(ground: Ground) -> Accepted:
            if document.kind == "Model":
                require_name(document.name, ground.snapshot, self.token)
            judged = intents.with_declared(ground, before)
            return intents.decide_apply(document, judged, caller, self.generation)

        return (await self.services.carry_out(decide, *intents.folders(document))).body


def _writer(body: ApplyBody, token: TokenRecord) -> Writer:
    if body.manager == GITOPS:
        if body.origin is None:
            raise UsageError(
                "manager gitops needs an origin", next_step="send origin: {commit, path}"
            )
        return Writer(GITOPS, body.take, {"commit": body.origin.commit, "path": body.origin.path})
    if body.origin is not None:
        raise UsageError("an origin belongs to manager gitops only")
    return Writer(AUTOSCALER if body.manager == AUTOSCALER else token.name, body.take)


def _of_tenant(name: str, token: TokenRecord, decide: Decide) -> Decide:
    """The decision, after a look whether the model is there for this token."""

    def checked(ground: Ground) -> Accepted:
        require_model(name, ground.snapshot, token)
        return decide(ground)

    return checked


def operation_ids(declared: list[intents.Declaration], operation_id: str) -> list[str]:
    """One operation a model: the given id for a single model, with its name for several."""
    models = sum(document.kind == "Model" for document in declared)
    if models > 1 and len(operation_id) > 32:
        raise UsageError("operation_id is too long for several models; use 32 characters")
    return [
        f"{operation_id}-{document.name}"[:63] if models > 1 else operation_id
        for document in declared
    ]
