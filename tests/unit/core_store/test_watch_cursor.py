"""What a watch delivers, drops, holds back and makes up; pure."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from moectl.core.store.protocol import EventType, KeyValue, Range, WatchEvent
from moectl.core.store.resume import WatchCursor, split_last_revision


def put(key: str, revision: int) -> WatchEvent:
    return WatchEvent(EventType.PUT, KeyValue(key, b"v", revision, revision, 1))


def deletion(key: str, revision: int) -> WatchEvent:
    return WatchEvent(EventType.DELETE, KeyValue(key, b"", 0, revision, 0))


def test_what_was_delivered_is_not_delivered_again() -> None:
    cursor = WatchCursor(5)
    assert cursor.deliver([put("a", 4), put("b", 5)]) is None
    batch = cursor.deliver([put("b", 5), put("c", 6)])
    assert batch is not None and batch.events == (put("c", 6),) and batch.revision == 6
    assert cursor.revision == 6


def test_progress_only_goes_forward() -> None:
    cursor = WatchCursor(5)
    cursor.progress(9)
    cursor.progress(3)
    assert cursor.revision == 9


def test_a_reset_deletes_what_the_reader_takes_for_present_and_only_that() -> None:
    cursor = WatchCursor(5, known=["before", "kept"])
    cursor.deliver([put("seen", 6), put("deleted", 7), deletion("deleted", 8)])
    kept = KeyValue("kept", b"new", 2, 20, 4)
    batch = cursor.reset(Range([kept], 30))
    assert batch.reset and batch.revision == cursor.revision == 30
    assert batch.events == (
        deletion("before", 30),
        deletion("seen", 30),
        WatchEvent(EventType.PUT, kept),
    )
    assert cursor.reset(Range([], 31)).events == (deletion("kept", 31),)


@given(st.lists(st.integers(1, 6), max_size=12).map(sorted), st.data())
def test_fragments_are_joined_at_whole_revisions(revisions: list[int], data: st.DataObject) -> None:
    """However the server cuts a stream, each revision is delivered once and whole."""
    events = [put(f"k{index}", revision) for index, revision in enumerate(revisions)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=4)))
    bounds = [0, *cuts, len(events)]
    pieces = [events[a:b] for a, b in itertools.pairwise(bounds)]
    cursor, held, delivered = WatchCursor(0), [], []
    for index, piece in enumerate(pieces):
        joined = [*held, *piece]
        last = index == len(pieces) - 1
        whole, held = (joined, []) if last else split_last_revision(joined)
        batch = cursor.deliver(whole)
        if batch is not None:
            delivered.append(batch)
    assert [event for batch in delivered for event in batch.events] == events
    ends = [batch.events[-1].kv.mod_revision for batch in delivered]
    assert ends == sorted(set(ends))
