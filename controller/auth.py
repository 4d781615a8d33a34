"""Who is calling, and may they?

Bearer tokens are known by their SHA-256 digest only: the digest is the key of the token's record,
so a leaked store leaks no token, and looking up is comparing digests. Nothing here logs a token.
"""

import hashlib
from enum import IntEnum

from ..core.errors import AuthError
from ..core.records import TokenRecord
from .observe import Snapshot

TOKEN_CHARACTERS_MAX = 4096  # a longer header is not one of ours; hash no novels


class Role(IntEnum):
    """What a token may do; each role may do what the ones below it may."""

    VIEWER = 1  # look
    OPERATOR = 2  # declare, scale and delete models
    ADMIN = 3  # change the cluster itself


def digest_of(token: str) -> str:
    """The name under which a token is known."""
    return hashlib.sha256(token.encode()).hexdigest()


def authenticate(authorization: str | None, snapshot: Snapshot) -> TokenRecord:
    """The token behind an `Authorization: Bearer ...` header; raises AuthError."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise AuthError("no bearer token", next_step="send 'Authorization: Bearer TOKEN'")
    found = None
    if len(token) <= TOKEN_CHARACTERS_MAX:
        found = snapshot.tokens.get(digest_of(token.strip()))
    if found is None:
        raise AuthError("unknown token", next_step="use a token of this fleet")
    return found.value


def authorise(token: TokenRecord, needed: Role) -> None:
    """Raise AuthError unless the token's role is enough."""
    if role_of(token) < needed:
        raise AuthError(
            f"token {token.name!r} has role {token.role}, this needs {needed.name.lower()}",
            next_step=f"use a token with role {needed.name.lower()}",
        )


def role_of(token: TokenRecord) -> int:
    """The rank of a token's role; an unknown role may do nothing."""
    return Role[token.role.upper()] if token.role.upper() in Role.__members__ else 0
