"""Is one field of a JSON request what it should be? Small readers that raise a 400 naming the
field.

Strict on types (a boolean is no number, a numeric string is no number), because a client that sends
the wrong type has a bug that it wants to hear about.
"""

import json
import math
from typing import Any

from .api_errors import ApiError, invalid

NESTING_MESSAGE = "the body is nested too deeply"


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body; NaN, bad UTF-8 and non-objects are refused."""
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise invalid(NESTING_MESSAGE, None, code="invalid_json") from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}", None, code="invalid_json") from error
    if not isinstance(data, dict):
        raise invalid("the body must be a JSON object", None, code="invalid_json")
    return data


def read_integer(data: dict[str, Any], name: str, low: int, high: int) -> int | None:
    """An integer in [low, high], or None when absent or null."""
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if not low <= value <= high:
        raise out_of_range(name, low, high)
    return value


def read_number(data: dict[str, Any], name: str, low: float, high: float) -> float | None:
    """A finite number in [low, high], or None when absent or null."""
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise wrong_type(name, "a number", value)
    if not (low <= value <= high and math.isfinite(value)):
        raise out_of_range(name, low, high)
    return float(value)


def read_boolean(data: dict[str, Any], name: str) -> bool:
    """A boolean; absent and null are False."""
    value = data.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong_type(name, "a boolean", value)
    return value


def read_text(value: Any, name: str) -> str:
    """A string that is valid Unicode (a lone surrogate escape is not)."""
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(f"{name!r} holds a lone surrogate, which is no character", name) from None
    return value


def wrong_type(name: str, expected: str, value: Any) -> ApiError:
    """400: the field has another type."""
    kind = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}.get(
        type(value), "null" if value is None else "a number"
    )
    return invalid(f"{name!r} must be {expected}, got {kind}", name, code="invalid_type")


def out_of_range(name: str, low: float, high: float) -> ApiError:
    """400: the field is outside its limits."""
    return invalid(f"{name!r} must be between {low:g} and {high:g}", name)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
