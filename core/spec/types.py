"""The kinds of value that a spec is made of, as strict pydantic types.

A quantity is text with a unit in the file and a plain number in the program; it is read by
`core.units` and nowhere else. Field names are camelCase in a file and snake_case in Python.
"""

import ipaddress
import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from ..units import UnitError, exact_duration, parse_bytes, parse_count, parse_duration_s

NAME_LENGTH_MAX = 40  # names become parts of socket paths, which the kernel limits
NAME_PATTERN = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
NAME_FIX = f"use 1 to {NAME_LENGTH_MAX} of a-z, 0-9 and '-', such as chat-2 (quote it if YAML"
NAME_FIX += " reads it as a number or a boolean)"


class SpecModel(BaseModel):
    """Base of every part of a spec: unknown fields and loose types are errors; frozen."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_default=False,
        allow_inf_nan=False,
    )


def mistake(reason: str, fix: str) -> PydanticCustomError:
    """A validation error with its own fix; braces are pydantic's, so texts go as context."""
    return PydanticCustomError("moectl", "{reason}", {"reason": reason, "fix": fix})


def _bytes(value: Any) -> int:
    try:
        return parse_bytes(value)
    except UnitError as error:
        raise mistake(error.reason, error.fix) from error


def _count(value: Any) -> int:
    try:
        return parse_count(value)
    except UnitError as error:
        raise mistake(error.reason, error.fix) from error


def _whole_text(value: Any) -> Any:
    if isinstance(value, str) and "." in value:
        raise mistake(f"{value!r} has a fraction", "write a whole number, such as 1536 or 3Ki")
    return value


def _duration(value: Any) -> float:
    try:
        seconds = parse_duration_s(value)
    except UnitError as error:
        raise mistake(error.reason, error.fix) from error
    if seconds <= 0:
        raise mistake("a duration of zero", "give a time above zero, or leave the field out")
    return seconds


def _name(value: Any) -> str:
    if (
        not isinstance(value, str)
        or len(value) > NAME_LENGTH_MAX
        or not re.fullmatch(NAME_PATTERN, value, re.ASCII)
    ):
        raise mistake(f"{value!r} is not a name", NAME_FIX)
    return value


def _address(value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError as error:
        raise mistake(
            f"{value!r} is not an IPv4 address", "write four numbers, such as 127.0.0.11"
        ) from error


def _path(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise mistake("an empty path", "name the folder that holds config.json and the weights")
    return value


def _schema(pattern: str, example: str) -> WithJsonSchema:
    text = {"type": "string", "pattern": pattern, "examples": [example]}
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, text]})


Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    _schema(r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGT]iB|[kKMGT]?B)?\s*$", "64GiB"),
]
Count = Annotated[
    int, BeforeValidator(_count), _schema(r"^[0-9]+(\.[0-9]+)?\s*([KMG]i|[kKMG])?$", "1Mi")
]
# A count within bounds. Text has no fraction there: the schema says the bounds by a pattern.
WholeCount = Annotated[Count, BeforeValidator(_whole_text)]
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(exact_duration, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(?=.*[1-9])\s*([0-9]+(\.[0-9]+)?\s*(ns|us|ms|s|m|h|d)\s*)+$",
            "examples": ["80ms"],
        }
    ),
]
Name = Annotated[
    str,
    BeforeValidator(_name),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": NAME_LENGTH_MAX}
    ),
]
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
Address = Annotated[
    str,
    AfterValidator(_address),
    WithJsonSchema({"type": "string", "pattern": f"^({_OCTET}\\.){{3}}{_OCTET}$"}),
]
FolderPath = Annotated[
    str,
    AfterValidator(_path),
    WithJsonSchema({"type": "string", "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"}),
]
