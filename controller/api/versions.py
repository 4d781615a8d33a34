"""Which version does a client hold, and is it still the newest? ETag, If-None-Match, If-Match.

The ETag of a declared object is its generation, quoted: `"7"`. A write that carries `If-Match` is
carried out on exactly that generation, else refused with 409 and the names of the fields that
changed since; `expected_generation` in a body means the same.
"""

import re
from typing import Annotated, Any

from fastapi import Header, Request, Response

from ...core.errors import UsageError

ETAG = re.compile(r'(?:W/)?"(\d{1,15})"')

IfMatch = Annotated[
    str | None, Header(alias="If-Match", max_length=64, description='an ETag, such as "7"')
]


def expected(if_match: str | None, in_body: int | None = None) -> int | None:
    """The generation that a write expects, or None; raises UsageError on a malformed header."""
    if if_match is None or if_match.strip() == "*":
        return in_body
    found = ETAG.fullmatch(if_match.strip())
    if found is None:
        raise UsageError(
            f"If-Match: {if_match!r} is not an ETag of this API",
            next_step='send the ETag that GET answered with, such as "7"',
        )
    return int(found[1])


def tagged(body: Any, version: int, request: Request, response: Response) -> Any:
    """The body with its ETag, or 304 when the client holds this version already."""
    tag = f'"{version}"'
    given = request.headers.get("if-none-match", "")
    if tag in (part.strip().removeprefix("W/") for part in given.split(",")):
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return body
