"""How does a frozen dataclass become JSON, and come back? The codec of every record.

Reading is strict: an unknown or missing field is a ProtocolError, never a silent default, because a
record written by another version is another contract. Standard library only.
"""

import dataclasses
import json
import types
import typing
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from .errors import ProtocolError
from .plan import DeviceId

T = TypeVar("T")


def to_json(record: Any) -> str:
    """Canonical JSON of a record: keys sorted, no spaces, enums and DeviceIds as strings."""
    return json.dumps(_plain(record), sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_plain(record: Any) -> Any:
    """The record as dicts, lists and scalars, for APIs that encode JSON themselves."""
    return _plain(record)


def _plain(value: Any) -> Any:
    if isinstance(value, DeviceId):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_json(cls: type[T], text: str | bytes) -> T:
    """Read a record; raises ProtocolError naming the field on anything unexpected."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"{cls.__name__}: not JSON: {error}") from error
    return from_plain(cls, data)


def from_plain(cls: type[T], data: Any) -> T:
    """The inverse of `to_plain`; raises ProtocolError naming the field."""
    return typing.cast(T, _build(cls, data, cls.__name__))


def _build(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return data
    if origin in (types.UnionType, typing.Union):
        return _build_optional(kind, data, where)
    if kind is DeviceId:
        return _convert(DeviceId.parse, data, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if origin is tuple:
        return _build_tuple(kind, data, where)
    if origin is dict:
        _expect(isinstance(data, dict), where, "an object", data)
        item = typing.get_args(kind)[1]
        return {key: _build(item, value, f"{where}.{key}") for key, value in data.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _convert(kind, data, where)
    if kind is float:
        _expect(
            isinstance(data, (int, float)) and not isinstance(data, bool), where, "a number", data
        )
        return float(data)
    _expect(type(data) is kind, where, kind.__name__, data)
    return data


def _build_optional(kind: Any, data: Any, where: str) -> Any:
    if data is None:
        return None
    (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
    return _build(inner, data, where)


def _build_tuple(kind: Any, data: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(data, list), where, "a list", data)
    item = typing.get_args(kind)[0]
    if item is int:  # the owner tables of large placements: checked as a whole, 20 times faster
        _expect(all(type(value) is int for value in data), where, "a list of integers", data)
        return tuple(data)
    return tuple(_build(item, value, f"{where}[{index}]") for index, value in enumerate(data))


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(kind)
    required = frozenset(
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}, required


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object", data)
    hints, required = _fields(kind)
    unknown = sorted(set(data) - set(hints))
    missing = sorted(required - set(data))
    if unknown or missing:
        raise ProtocolError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    return kind(**{key: _build(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _convert(convert: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, str), where, "a string", data)
    try:
        return convert(data)
    except ValueError as error:
        raise ProtocolError(f"{where}: {error}") from error


def _expect(holds: bool, where: str, expected: str, data: Any) -> None:
    if not holds:
        raise ProtocolError(f"{where}: expected {expected}, got {type(data).__name__}")
