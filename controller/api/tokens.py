"""Who lets people in? Tokens are made, listed and revoked here, by an admin.

The text of a token leaves this process once, in the answer that makes it; the store keeps its
SHA-256. The last admin token cannot be revoked, so that a fleet is never locked.
"""

import secrets
from typing import Any

from fastapi import APIRouter, Request

from ...core.errors import ConflictError, NotFoundError
from ...core.records import TokenRecord, to_plain
from ..admission import Ground
from ..auth import Role, digest_of, role_of
from ..decision import Draft
from ..intents import Accepted
from ..observe import Snapshot
from .guard import Admin, Parts, caller_of
from .requests import TokenBody

router = APIRouter(prefix="/v1")
PREFIX = "moe_"  # so that scanners for leaked secrets can tell what it is
ENTROPY_BYTES = 32


@router.get("/tokens")
async def tokens(token: Admin, services: Parts) -> list[dict[str, Any]]:
    """Names, roles and tenants of all tokens; never their texts."""
    found = services.mirror.snapshot().tokens.items()
    ordered = sorted(found, key=lambda item: (item[1].value.name, item[0]))
    return [to_plain(seen.value) | {"id": digest[:12]} for digest, seen in ordered]


@router.post("/tokens", status_code=201)
async def create_token(
    body: TokenBody, token: Admin, services: Parts, request: Request
) -> dict[str, Any]:
    """Make a token. Its text is in this answer and nowhere else."""
    caller = caller_of(request, token)
    text = PREFIX + secrets.token_urlsafe(ENTROPY_BYTES)
    record, digest = TokenRecord(body.name, body.role, body.tenant, caller.now), digest_of(text)
    told = to_plain(record) | {"id": digest[:12]}

    def decide(ground: Ground) -> Accepted:
        if digest in ground.snapshot.tokens:  # it landed, and nobody was told
            return Accepted(told)
        if any(seen.value.name == body.name for seen in ground.snapshot.tokens.values()):
            raise ConflictError(
                f"a token named {body.name!r} is there", next_step="revoke it, or use another name"
            )
        draft = Draft(f"token/{body.name}", "TokenCreated")
        draft.guard(ground.snapshot.keys.token(digest), 0)
        draft.put(ground.snapshot.keys.token(digest), record)
        draft.tell(caller.now, "info", f"role {body.role}, tenant {body.tenant}, by {token.name}")
        return Accepted(told, draft.done())

    accepted = await services.carry_out(decide)
    return accepted.body | {"token": text}


@router.delete("/tokens/{name}")
async def revoke_token(
    name: str, token: Admin, services: Parts, request: Request
) -> dict[str, Any]:
    """Revoke a token: it stops at once, open watches included."""
    caller = caller_of(request, token)

    def decide(ground: Ground) -> Accepted:
        draft = decide_revoke(name, ground.snapshot)
        draft.tell(caller.now, "info", f"by {token.name}")
        return Accepted({"name": name, "action": "revoked"}, draft.done())

    return (await services.carry_out(decide)).body


def decide_revoke(name: str, snapshot: Snapshot) -> Draft:
    """Take the tokens of a name away, under the guard that an admin's token stays.

    The guard names one that stays: of two revocations at one instant that would leave none, the
    second finds its witness gone, decides again, and is refused.
    """
    key_of = snapshot.keys.token
    found = {digest: seen for digest, seen in snapshot.tokens.items() if seen.value.name == name}
    if not found:
        raise NotFoundError(f"no token named {name!r}", next_step="`moectl token list`")
    admins = (
        digest
        for digest, seen in sorted(snapshot.tokens.items())
        if digest not in found and role_of(seen.value) >= Role.ADMIN
    )
    witness = next(admins, None)
    if witness is None:
        raise ConflictError(
            f"{name!r} is the last admin token", next_step="create another admin token first"
        )
    draft = Draft(f"token/{name}", "TokenRevoked")
    draft.guard(key_of(witness), snapshot.tokens[witness].mod_revision)
    for digest, seen in found.items():
        draft.guard(key_of(digest), seen.mod_revision).delete(key_of(digest))
    return draft
