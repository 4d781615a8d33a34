"""The numbering, reading and compaction of the memory store's history, without a loop."""

import pytest

from moectl.core.errors import CompactedError, StoreError
from moectl.core.store.history import History
from moectl.core.store.protocol import EventType, delete_op, get_op, put_op, version_is


def put(history: History, key: str, value: str) -> int:
    return history.apply([], [put_op(key, value)], []).revision


def delete(history: History, key: str) -> int:
    return history.apply([], [delete_op(key)], []).revision


def test_an_empty_history_is_at_revision_one_and_the_first_put_at_two() -> None:
    history = History()
    assert history.revision == 1
    assert put(history, "a", "1") == 2


def test_a_transaction_that_writes_nothing_takes_no_revision() -> None:
    history = History()
    put(history, "a", "1")
    for compare, ops in ([], [get_op("a")]), ([], [delete_op("b")]), ([version_is("a", 9)], []):
        assert history.apply(compare, ops, []).revision == 2


def test_a_key_created_again_begins_again() -> None:
    history = History()
    put(history, "a", "1")
    delete(history, "a")
    again = put(history, "a", "2")
    kv = history.get("a")
    assert kv is not None
    assert (kv.create_revision, kv.mod_revision, kv.version) == (again, again, 1)


def test_every_kept_revision_reads_as_it_was() -> None:
    history, states = History(), {}
    for step in range(20):
        key = f"k{step % 4}"
        revision = delete(history, key) if step % 5 == 4 else put(history, key, str(step))
        states[revision] = [(kv.key, kv.value) for kv in history.get_prefix("").kvs]
    for compacted in (0, 7, 15, 21):
        if compacted:
            history.compact(compacted)
        for revision, state in states.items():
            if revision >= compacted:
                seen = history.get_prefix("", revision).kvs
                assert [(kv.key, kv.value) for kv in seen] == state
            else:
                with pytest.raises(CompactedError):
                    history.get_prefix("", revision)


def test_compaction_keeps_the_version_in_force_and_drops_the_rest() -> None:
    history = History()
    put(history, "a", "1")
    put(history, "a", "2")
    put(history, "gone", "1")
    deleted = delete(history, "gone")
    history.compact(deleted)
    assert history.event_count == 0
    assert [kv.value for kv in history.get_prefix("").kvs] == [b"2"]
    last = put(history, "b", "3")
    assert [event.kv.key for event in history.changes_after(deleted, "")] == ["b"]
    assert history.get_prefix("", deleted).kvs == history.get_prefix("a", last).kvs


def test_changes_that_may_be_gone_are_refused_rather_than_shortened() -> None:
    history = History()
    first = put(history, "a", "1")
    second = delete(history, "a")
    history.compact(second)
    with pytest.raises(CompactedError) as caught:
        history.changes_after(first, "a")
    assert caught.value.compact_revision == second
    assert history.changes_after(second, "a") == []


def test_the_future_and_the_past_cannot_be_compacted() -> None:
    history = History()
    put(history, "a", "1")
    with pytest.raises(StoreError, match="future"):
        history.compact(99)
    history.compact(2)
    with pytest.raises(CompactedError):
        history.compact(2)


def test_changes_under_a_prefix_are_in_order_with_their_type() -> None:
    history = History()
    put(history, "p/a", "1")
    put(history, "q", "1")
    delete(history, "p/a")
    events = history.changes_after(1, "p/")
    assert [(event.type, event.kv.mod_revision) for event in events] == [
        (EventType.PUT, 2),
        (EventType.DELETE, 4),
    ]
