"""The codec as it reads in words: every value is asked what it is. The compiled one must agree."""

import dataclasses
import json
import types
import typing
from enum import StrEnum
from typing import Any

from moectl.core.errors import ProtocolError
from moectl.core.plan import DeviceId


def to_json(record: Any) -> str:
    return json.dumps(to_plain(record), sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_plain(value: Any) -> Any:
    if isinstance(value, (DeviceId, StrEnum)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, data: Any) -> Any:
    return _build(kind, data, kind.__name__)


def _build(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return data
    if origin in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
        return None if data is None else _build(inner, data, where)
    if kind is DeviceId:
        return _convert(DeviceId.parse, data, where)
    if dataclasses.is_dataclass(kind):
        return _build_record(kind, data, where)
    if origin is tuple:
        return _build_tuple(kind, data, where)
    if origin is dict:
        _expect(isinstance(data, dict), where, "an object", data)
        item = typing.get_args(kind)[1]
        return {key: _build(item, value, f"{where}.{key}") for key, value in data.items()}
    if issubclass(kind, StrEnum):
        return _convert(kind, data, where)
    if kind is float:
        is_number = isinstance(data, (int, float)) and not isinstance(data, bool)
        _expect(is_number, where, "a number", data)
        return float(data)
    _expect(type(data) is kind, where, kind.__name__, data)
    return data


def _build_tuple(kind: Any, data: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(data, list), where, "a list", data)
    item = typing.get_args(kind)[0]
    if item is int:
        _expect(all(type(value) is int for value in data), where, "a list of integers", data)
    return tuple(_build(item, value, f"{where}[{index}]") for index, value in enumerate(data))


def _build_record(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object", data)
    hints = typing.get_type_hints(kind)
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    unknown, missing = sorted(set(data) - set(hints)), sorted(required - set(data))
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
