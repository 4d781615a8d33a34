"""Every record survives JSON exactly, and nothing but a record of this version is accepted.

MOECTL_RECORD_EXAMPLES sets how many records of each kind: 30 here, 1,000 in `make soak`.
"""

import dataclasses
import json
import os
from typing import Any

import pytest
import reference_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.core import codec, plan, records
from moectl.core.errors import ProtocolError
from moectl.core.plan import DeviceId

EXAMPLES = int(os.environ.get("MOECTL_RECORD_EXAMPLES", "30"))
NAMES = st.text(alphabet="abcxyz0189-", min_size=1, max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=5,
)
st.register_type_strategy(DeviceId, st.builds(DeviceId, NAMES, NAMES))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
st.register_type_strategy(float, FLOATS)

# The types that a record may be written as on its own.
RECORDS = [
    kind
    for kind in vars(records).values()
    if dataclasses.is_dataclass(kind) and kind.__module__ in (records.__name__, plan.__name__)
]
RECORDS = sorted({plan.Placement, *RECORDS} - {DeviceId}, key=lambda kind: kind.__name__)


def built(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a record; fields of free-form JSON get JSON."""
    hints = codec._fields(kind)[0]
    free = {
        name: st.dictionaries(NAMES, JSON_VALUES, max_size=3)
        for name in hints
        if hints[name] == dict[str, Any]
    }
    return st.builds(kind, **free)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_a_record_survives_json_exactly(kind: Any, data: st.DataObject) -> None:
    record = data.draw(built(kind))
    text = records.to_json(record)
    assert records.from_json(kind, text) == record
    assert records.to_json(records.from_json(kind, text)) == text


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=20)  # one field is as good as another
@given(data=st.data())
def test_unknown_and_missing_fields_are_refused_by_name(kind: Any, data: st.DataObject) -> None:
    plain = records.to_plain(data.draw(built(kind)))
    with pytest.raises(ProtocolError, match="unknown fields"):
        records.from_plain(kind, plain | {"surprise": 1})
    required = sorted(codec._fields(kind)[1])
    name = data.draw(st.sampled_from(required))
    with pytest.raises(ProtocolError, match=name):
        records.from_plain(kind, {key: value for key, value in plain.items() if key != name})


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(text=st.one_of(JSON_VALUES.map(json.dumps), st.text(max_size=20), st.binary(max_size=20)))
def test_anything_else_is_a_protocol_error_and_nothing_worse(kind: Any, text: str | bytes) -> None:
    try:
        records.from_json(kind, text)
    except ProtocolError as error:
        assert kind.__name__ in str(error)


def damaged(plain: Any, data: st.DataObject) -> Any:
    """The same data with one place, any number of levels down, holding something else."""
    if isinstance(plain, (dict, list)) and plain and data.draw(st.integers(0, 5)):
        places = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
        place = data.draw(st.sampled_from(places))
        changed: Any = plain.copy()
        changed[place] = damaged(plain[place], data)
        return changed
    return data.draw(st.one_of(JSON_VALUES, FLOATS, st.just(["n1/d0", True])))


def outcome(read: Any, kind: Any, plain: Any) -> Any:
    try:
        return read(kind, plain)
    except ProtocolError as error:
        return str(error)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_a_compiled_way_writes_and_reads_what_asking_every_value_would(
    kind: Any, data: st.DataObject
) -> None:
    record = data.draw(built(kind))
    assert records.to_json(record) == reference_codec.to_json(record)
    plain = records.to_plain(record)
    assert plain == reference_codec.to_plain(record)
    wrong = damaged(plain, data)
    expected = outcome(reference_codec.from_plain, kind, wrong)
    found = outcome(records.from_plain, kind, wrong)
    assert (type(found), found) == (type(expected), expected)


@given(st.builds(DeviceId, NAMES, NAMES))
def test_a_device_survives_being_written(device: DeviceId) -> None:
    assert DeviceId.parse(str(device)) == device


@given(st.text(max_size=12))
def test_a_device_that_is_no_device_is_refused(text: str) -> None:
    try:
        assert str(DeviceId.parse(text)) == text
    except ValueError as error:
        assert "expected NODE/DEVICE" in str(error)
