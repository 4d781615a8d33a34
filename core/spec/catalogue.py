"""Which device sheets and fitted constants are shipped, as plain data?

The files of `clusters/devices`, read once a process: they are part of the program. What the fields
mean is the planner's business (`placement.hardware`, `placement.constants`); here they are objects.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import RefusedError

CPU_SHEET = "cpu"  # the only kind whose sheet follows from the kind


def shipped_folder() -> Path:
    """The folder of shipped data."""
    return Path(__file__).resolve().parents[2] / "clusters"


@cache
def sheet_names() -> tuple[str, ...]:
    """Names of the device sheets, sorted."""
    return tuple(sorted(path.stem for path in (shipped_folder() / "devices").glob("*.yaml")))


@cache
def _sheet(name: str) -> dict[str, Any]:
    import yaml

    path = shipped_folder() / "devices" / f"{name}.yaml"
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data


def sheet(name: str) -> dict[str, Any]:
    """The entry of a device sheet; raises RefusedError naming those that are known."""
    if name not in sheet_names():
        raise RefusedError(
            f"device {name!r} is not in the catalogue",
            next_step=f"known: {', '.join(sheet_names())}",
        )
    return copy.deepcopy(_sheet(name))


@cache
def fitted_constants() -> tuple[tuple[str, float], ...]:
    """Name and value of every shipped constant of the time model."""
    text = (shipped_folder() / "devices" / "constants.json").read_text(encoding="utf-8")
    return tuple((str(k), float(v)) for k, v in json.loads(text)["constants"].items())


def with_changes(entry: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """An entry with some fields replaced; objects are merged field by field, None changes nothing.

    >>> with_changes({"a": 1, "links": {"node": {"GBs": 9}}}, {"links": {"node": {"GBs": 3}}})
    {'a': 1, 'links': {'node': {'GBs': 3}}}
    """
    merged = dict(entry)
    for key, value in changes.items():
        before = merged.get(key)
        if value is None:
            continue
        is_nested = isinstance(value, dict) and isinstance(before, dict)
        merged[key] = with_changes(before, value) if is_nested else value  # type: ignore[arg-type]
    return merged
