"""Who may pass? The dependencies that every route but health stands behind.

A route names the role it needs by the type of its token parameter; there is no other way to get
one. The audit entry learns here who is calling.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from ...core.errors import AuthError
from ...core.records import TokenRecord
from ..auth import Role, authenticate, authorise
from ..intents import Caller
from ..ownership import Writer
from . import audit
from .answers import UnauthenticatedError
from .services import Services, new_operation_id, stale


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
        audit.note(request.scope, token=token.name, role=token.role, tenant=token.tenant)
        authorise(token, role)
        return token

    return check


Viewer = Annotated[TokenRecord, Depends(needs(Role.VIEWER))]
Operator = Annotated[TokenRecord, Depends(needs(Role.OPERATOR))]
Admin = Annotated[TokenRecord, Depends(needs(Role.ADMIN))]
Parts = Annotated[Services, Depends(services_of)]


def caller_of(
    request: Request,
    token: TokenRecord,
    operation_id: str | None = None,
    dry_run: bool = False,
    writer: Writer | None = None,
) -> Caller:
    """Who asks, with an operation id in any case."""
    chosen = operation_id or new_operation_id()
    audit.note(request.scope, operation_id=chosen[:63], dry_run=dry_run)
    now = services_of(request).clock.now()
    return Caller(token.name, now, chosen, dry_run, token.tenant, writer)
