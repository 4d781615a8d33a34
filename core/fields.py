"""Who owns each leaf of a spec, and since which generation does it say what it says?

One owner a leaf: `gitops`, `autoscaler`, or the name of a person's token. Maps are looked into,
lists are one leaf: their items have no names to own. Pure; the rules of who may change what are the
controller's. Standard library only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

GITOPS = "gitops"
AUTOSCALER = "autoscaler"
MACHINES = (GITOPS, AUTOSCALER)  # owners that write again and again; all others are people


@dataclass(frozen=True, slots=True)
class FieldNote:
    """One leaf: its owner, when it last changed, and to whom a release gives it back."""

    owner: str
    generation: int  # of the spec in which it got its present value
    before: str = ""  # the owner it was taken from; empty when it was not taken


def leaves(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf.

    >>> list(leaves({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    for key, value in spec.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def changed_leaves(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Paths whose values differ, or that only one of the two has; sorted."""
    before, after = dict(leaves(old)), dict(leaves(new))
    missing = object()
    paths = sorted(before.keys() | after.keys())
    return [p for p in paths if before.get(p, missing) != after.get(p, missing)]


def leaf(spec: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; raises KeyError."""
    value: Any = spec
    for key in path.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(path)
        value = value[key]
    return value


def with_leaf(spec: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the spec with one leaf set; maps on the way are made."""
    head, _, rest = path.partition(".")
    inner = spec.get(head)
    new = with_leaf(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value
    return {**spec, head: new}
