"""How does a frozen dataclass become JSON, and come back? The codec of every record.

Reading is strict: an unknown or missing field is a ProtocolError, never a silent default, because a
record written by another version is another contract. How a type is read and written is worked out
once, from its annotations: a transition holds hundreds of steps, and every process of the fleet
reads and writes it at every phase. Its steps never change, so the last of such lists are kept: what
is the same object is not written again, what is the same text (types of numbers included) is not
read again. Standard library only.
"""

import dataclasses
import json
import types
import typing
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, TypeVar

from .errors import ProtocolError
from .plan import DeviceId

T = TypeVar("T")
Way = Callable[[Any], Any]

LISTS_KEPT = 4  # of records, per field: of the transitions that are under way
KEPT_ITEMS_MIN = 8  # shorter lists are worked out faster than they are looked up
DEVICES_KEPT = 4096  # parsed names of devices: a fleet's, many times over

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def to_json(record: Any) -> str:
    """Canonical JSON of a record: keys sorted, no spaces, enums and DeviceIds as strings."""
    return _encode(to_plain(record))


def to_plain(record: Any) -> Any:
    """The record as dicts, lists and scalars, for APIs that encode JSON themselves."""
    kind: Any = type(record)
    return _writer(kind)(record)


def from_json(cls: type[T], text: str | bytes) -> T:
    """Read a record; raises ProtocolError naming the field on anything unexpected."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"{cls.__name__}: not JSON: {error}") from error
    return from_plain(cls, data)


def from_plain(cls: type[T], data: Any) -> T:
    """The inverse of `to_plain`; raises ProtocolError naming the field."""
    kind: Any = cls
    try:
        return typing.cast(T, _reader(kind)(data))
    except _Unexpected as wrong:
        raise ProtocolError(f"{cls.__name__}{wrong.where}: {wrong.why}") from wrong.__cause__


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(kind)
    required = frozenset(
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}, required


def _same(value: Any) -> Any:
    return value


def _inner(kind: Any) -> Any:
    """X of `X | None`."""
    (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
    return inner


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


# -- writing -----------------------------------------------------------------------------------


@cache
def _writer(kind: type) -> Way:
    """How values of a class are written, whatever field they come from."""
    if issubclass(kind, (DeviceId, StrEnum)):
        return str
    if dataclasses.is_dataclass(kind):
        return _record_writer(kind)
    if issubclass(kind, dict):
        return lambda value: {str(key): to_plain(item) for key, item in value.items()}
    if issubclass(kind, (list, tuple)):
        return lambda value: [to_plain(item) for item in value]
    return _same


def _record_writer(kind: type) -> Way:
    names = tuple(field.name for field in dataclasses.fields(kind))
    hints = _fields(kind)[0]
    ways = {name: _field_writer(hint) for name, hint in hints.items()}
    ways |= {name: _kept_writer(ways[name]) for name, hint in hints.items() if _is_rich(hint)}
    # An int is written as it is, and most fields are ints: only the others are gone through.
    changed = tuple((name, way) for name, way in ways.items() if way is not _same)
    values = _all_of(names)

    def write(record: Any) -> dict[str, Any]:
        plain = dict(zip(names, values(record), strict=True))
        for name, way in changed:
            plain[name] = way(plain[name])
        return plain

    return write


def _all_of(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """The named fields of a record at once; `attrgetter` makes a tuple of two and more only."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _field_writer(hint: Any) -> Way:
    """How the values of a field are written."""
    if hint in (int, float, bool):
        return _same
    if _is_union(hint):
        way = _field_writer(_inner(hint))
        return lambda value: None if value is None else way(value)
    if typing.get_origin(hint) is tuple:
        item = _field_writer(typing.get_args(hint)[0])
        return list if item is _same else lambda value: [item(each) for each in value]
    if hint is DeviceId or (isinstance(hint, type) and issubclass(hint, StrEnum)):
        return str
    return to_plain


def _is_rich(hint: Any) -> bool:
    """Whether a field holds a list of records or of lists."""
    item = (*typing.get_args(hint), None)[0] if typing.get_origin(hint) is tuple else None
    is_record = dataclasses.is_dataclass(item) and item is not DeviceId
    return is_record or typing.get_origin(item) is tuple


def _kept_writer(way: Way) -> Way:
    """For tuples that never change; who is given the list must not change it either."""
    kept: deque[tuple[Any, list[Any]]] = deque(maxlen=LISTS_KEPT)

    def write(values: Any) -> list[Any]:
        for known, plain in list(kept):  # other threads keep theirs meanwhile
            if known is values:
                return plain
        plain = way(values)
        if len(plain) >= KEPT_ITEMS_MIN and type(values) is tuple:
            kept.append((values, plain))
        return plain

    return write


# -- reading -----------------------------------------------------------------------------------


class _Unexpected(Exception):
    """What is wrong, and, growing on the way up, where: so that a good record costs no names."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why, self.where = why, ""

    def within(self, place: str) -> "_Unexpected":
        """The same, seen from one level above."""
        self.where = place + self.where
        return self


@cache
def _reader(kind: Any) -> Way:
    """How plain data becomes a value of a type; the way raises _Unexpected."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return _same
    if _is_union(kind):
        way = _reader(_inner(kind))
        return lambda data: None if data is None else way(data)
    if kind is DeviceId:
        return _word_reader(lru_cache(DEVICES_KEPT)(DeviceId.parse))
    if dataclasses.is_dataclass(kind):
        return _record_reader(kind)
    if origin is tuple:
        return _tuple_reader(typing.get_args(kind)[0])
    if origin is dict:
        return _dict_reader(typing.get_args(kind)[1])
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _word_reader(cache(kind))
    return _read_number if kind is float else _scalar_reader(kind)


def _record_reader(kind: Any) -> Way:
    hints, required = _fields(kind)
    names, ways = hints.keys(), {name: _reader(hint) for name, hint in hints.items()}
    ways |= {name: _kept_reader(ways[name]) for name, hint in hints.items() if _is_rich(hint)}

    def read(data: Any) -> Any:
        if not isinstance(data, dict):
            raise _unlike("an object", data)
        if data.keys() != names and not required <= data.keys() <= names:
            unknown, missing = sorted(data.keys() - names), sorted(required - data.keys())
            raise _Unexpected(f"unknown fields {unknown}, missing fields {missing}")
        values: dict[str, Any] = {}
        name = ""
        try:
            for name, value in data.items():
                values[name] = ways[name](value)
        except _Unexpected as wrong:
            raise wrong.within(f".{name}") from wrong.__cause__
        return kind(**values)

    return read


def _dict_reader(item: Any) -> Way:
    way = _reader(item)

    def read(data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise _unlike("an object", data)
        values: dict[str, Any] = {}
        key = ""
        try:
            for key, value in data.items():
                values[key] = way(value)
        except _Unexpected as wrong:
            raise wrong.within(f".{key}") from wrong.__cause__
        return values

    return read


def _tuple_reader(item: Any) -> Way:
    way = _reader(item)

    def read(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise _unlike("a list", data)
        values: list[Any] = []
        try:
            for value in data:
                values.append(way(value))
        except _Unexpected as wrong:
            raise wrong.within(f"[{len(values)}]") from wrong.__cause__
        return tuple(values)

    # The owner tables of large placements are checked as a whole: 20 times faster.
    return _read_integers if item is int else read


def _kept_reader(read: Way) -> Way:
    """For lists that are read often. `repr` tells 1 from 1.0 and True, as equality would not."""
    kept: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=LISTS_KEPT)

    def read_or_find(data: Any) -> Any:
        if type(data) is not list or len(data) < KEPT_ITEMS_MIN:
            return read(data)
        text = repr(data)
        for known, values in list(kept):
            if known == text:
                return values
        kept.append((text, read(data)))
        return kept[-1][1]

    return read_or_find


def _read_integers(data: Any) -> tuple[int, ...]:
    if not isinstance(data, list):
        raise _unlike("a list", data)
    for value in data:
        if type(value) is not int:
            raise _unlike("a list of integers", data)
    return tuple(data)


def _word_reader(convert: Callable[[str], Any]) -> Way:
    def read(data: Any) -> Any:
        if not isinstance(data, str):
            raise _unlike("a string", data)
        try:
            return convert(data)
        except ValueError as error:
            raise _Unexpected(str(error)) from error

    return read


def _read_number(data: Any) -> float:
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise _unlike("a number", data)
    return float(data)


def _scalar_reader(kind: Any) -> Way:
    def read(data: Any) -> Any:
        if type(data) is not kind:
            raise _unlike(kind.__name__, data)
        return data

    return read


def _unlike(expected: str, data: Any) -> _Unexpected:
    return _Unexpected(f"expected {expected}, got {type(data).__name__}")
