"""Looking into a spec that may be wrong: the values that rules over several fields compare.

Types are checked elsewhere and report their own mistakes, so everything here answers "not there"
for what it cannot read. So rules over several fields report beside wrong types, all at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..units import UnitError, parse_bytes

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake with its place inside `spec`, before it has a file and a line."""

    path: Path
    reason: str
    fix: str


def child(value: object, key: str) -> Mapping[str, Any]:
    """The object under a key, or an empty one."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def children(value: object, key: str) -> list[tuple[int, Any]]:
    """The items of the list under a key with their indexes, or nothing."""
    found = value.get(key) if isinstance(value, dict) else None
    return list(enumerate(found)) if isinstance(found, (list, tuple)) else []


def text_of(value: object, key: str) -> str | None:
    """The text under a key."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def quantity(value: object, key: str, default: int | None) -> int | None:
    """The bytes or the count under a key; `default` when absent, None when unreadable."""
    if not isinstance(value, dict) or key not in value:
        return default
    try:
        return parse_bytes(_with_byte_unit(value[key]))
    except UnitError:
        return None


def _with_byte_unit(value: Any) -> Any:
    """A count such as 1Ki reads as bytes once it ends in B; both have the same factors."""
    if isinstance(value, str) and value.strip()[-1:] in ("i", "k", "K", "M", "G"):
        return value.strip() + "B"
    return value
