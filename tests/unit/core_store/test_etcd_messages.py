"""Translation to and from etcd's wire."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from moectl.core.store import etcd_wire_pb2 as wire
from moectl.core.store.etcd_messages import range_bounds, watch_event
from moectl.core.store.protocol import EventType

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(KEYS.filter(bool), KEYS)
def test_the_bounds_of_a_prefix_hold_exactly_the_keys_that_begin_with_it(
    prefix: str, key: str
) -> None:
    first, end = range_bounds(prefix)
    for candidate in (key, prefix + key, prefix[:-1] + key):
        if candidate:
            assert (first <= candidate.encode() < end) == candidate.startswith(prefix)


def test_the_empty_prefix_is_every_key() -> None:
    assert range_bounds("") == (b"\0", b"\0")


def test_a_deletion_is_a_key_without_value_and_version() -> None:
    raw = wire.Event(type=wire.Event.DELETE, kv=wire.KeyValue(key=b"a", mod_revision=7))
    event = watch_event(wire.Event.FromString(raw.SerializeToString()))
    assert event.type is EventType.DELETE
    assert (event.kv.key, event.kv.value, event.kv.mod_revision, event.kv.version) == (
        "a",
        b"",
        7,
        0,
    )


def test_the_generated_messages_load_with_warnings_as_errors() -> None:
    """A protobuf runtime too old, or too new, for the generated file warns or refuses at import."""
    code = "import moectl.core.store.etcd_wire_pb2"
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], check=True, timeout=60)


def test_the_wire_fields_are_the_ones_that_etcd_publishes() -> None:
    """Written out once more, by number, because a wrong number is silently ignored by the peer."""
    numbers = {
        wire.KeyValue: "key=1 create_revision=2 mod_revision=3 version=4 value=5 lease=6",
        wire.RangeRequest: "key=1 range_end=2 limit=3 revision=4 serializable=7 keys_only=8",
        wire.Compare: "result=1 target=2 key=3 version=4 create_revision=5 mod_revision=6 value=7",
        wire.WatchCreateRequest: "key=1 range_end=2 start_revision=3 progress_notify=4 fragment=8",
        wire.WatchResponse: "header=1 watch_id=2 created=3 canceled=4 compact_revision=5 "
        "cancel_reason=6 fragment=7 events=11",
    }
    for message, expected in numbers.items():
        fields = " ".join(f"{f.name}={f.number}" for f in message.DESCRIPTOR.fields)
        assert fields == expected
