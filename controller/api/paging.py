"""How is a long list read in pieces, and a part of it chosen? Pure: limit, continue, select.

A page ends with a token that names the last key delivered, not a count, so a list that changes
meanwhile neither skips nor repeats what stayed. The token is opaque to clients and checked on
return. The answer stays a plain JSON list; the token of the next page stands in the header
`X-Continue`, and in `Link` for clients that follow links.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Response
from starlette.datastructures import URL

from ...core.errors import UsageError

LIMIT_MAX = 1000  # items of a page
TOKEN_CHARACTERS_MAX = 1024
SELECTORS_MAX = 16

Item = dict[str, Any]
KeyOf = Callable[[Item], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Page:
    """What a client asked for. Made by `page_of`, a dependency of every list route."""

    limit: int | None
    after: tuple[Any, ...] | None
    select: tuple[tuple[str, str, bool], ...]  # path, text, whether equal


def page_of(
    limit: Annotated[
        int | None,
        Query(ge=1, le=LIMIT_MAX, description="at most so many items", examples=[100]),
    ] = None,
    continue_: Annotated[
        str | None,
        Query(
            alias="continue",
            max_length=TOKEN_CHARACTERS_MAX,
            description="X-Continue of the page before",
        ),
    ] = None,
    select: Annotated[
        str | None,
        Query(
            max_length=1024,
            description="fields that must match, such as phase=done,model!=chat",
            examples=["phase=done"],
        ),
    ] = None,
) -> Page:
    """Parse the three parameters; raises UsageError."""
    return Page(limit, decode(continue_) if continue_ else None, selectors(select or ""))


def selectors(text: str) -> tuple[tuple[str, str, bool], ...]:
    """ "phase=done,model!=chat" as conditions that must all hold; raises UsageError."""
    found = []
    for part in filter(None, text.split(",")):
        path, separator, value = part.partition("=")
        is_equal = not path.endswith("!")
        path = path.rstrip("!").strip()
        if not separator or not path:
            raise UsageError(
                f"select: {part!r} is not a condition",
                next_step="write field=value or field!=value",
            )
        found.append((path, value.strip(), is_equal))
    if len(found) > SELECTORS_MAX:
        raise UsageError(f"select: {len(found)} conditions, at most {SELECTORS_MAX}")
    return tuple(found)


def cut(items: Sequence[Item], page: Page, key_of: KeyOf, url: URL, response: Response) -> Any:
    """The page of `items`, which are sorted by their key; sets the headers of the next one."""
    chosen = [item for item in items if all(_holds(item, one) for one in page.select)]
    if page.after is not None:
        chosen = [item for item in chosen if _is_after(tuple(key_of(item)), page.after)]
    if page.limit is None or len(chosen) <= page.limit:
        return chosen
    token = encode(key_of(chosen[page.limit - 1]))
    response.headers["X-Continue"] = token
    following = url.include_query_params(**{"continue": token})
    response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return chosen[: page.limit]


def _is_after(key: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    try:
        return key > after
    except TypeError as error:  # a token of another list
        raise UsageError("continue: not a token of this list") from error


def _holds(item: Item, condition: tuple[str, str, bool]) -> bool:
    path, text, is_equal = condition
    value: Any = item
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    shown = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return (shown == text) is is_equal


def encode(key: Sequence[Any]) -> str:
    """A key as an opaque token."""
    return base64.urlsafe_b64encode(json.dumps(list(key)).encode()).decode().rstrip("=")


def decode(token: str) -> tuple[Any, ...]:
    """The key of a token; raises UsageError."""
    try:
        raw = base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4))
        key = json.loads(raw)
    except (ValueError, binascii.Error) as error:
        raise UsageError("continue: not a token that this API gave out") from error
    if not isinstance(key, list) or not all(isinstance(k, (str, int, float)) for k in key):
        raise UsageError("continue: not a token that this API gave out")
    return tuple(key)
