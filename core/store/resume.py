"""Where does a watch stand, and what does its reader believe? The pure part of every watch.

`WatchCursor` keeps the last revision delivered, from which a broken watch is taken up again, and
the keys that the reader must believe present, from which deletions hidden by a compaction follow.
"""

from collections.abc import Iterable, Sequence

from .protocol import EventType, KeyValue, Range, WatchBatch, WatchEvent


class WatchCursor:
    """The position of one watch. `revision` is the last one whose changes were delivered."""

    def __init__(self, revision: int, known: Iterable[str] = ()) -> None:
        self.revision = revision
        self._known = set(known)

    def deliver(self, events: Sequence[WatchEvent]) -> WatchBatch | None:
        """The batch of the events not delivered yet; None when there are none.

        `events` are in order and hold whole revisions; those up to `revision` are dropped.
        """
        fresh = tuple(event for event in events if event.kv.mod_revision > self.revision)
        if not fresh:
            return None
        for event in fresh:
            if event.type is EventType.PUT:
                self._known.add(event.kv.key)
            else:
                self._known.discard(event.kv.key)
        self.revision = fresh[-1].kv.mod_revision
        return WatchBatch(self.revision, fresh)

    def progress(self, revision: int) -> None:
        """There was nothing up to `revision`: less to fetch, or to lose, on resuming."""
        self.revision = max(self.revision, revision)

    def reset(self, listed: Range) -> WatchBatch:
        """The batch that stands for the whole prefix, after history was lost."""
        present = {kv.key for kv in listed.kvs}
        vanished = sorted(self._known - present)
        gone = [KeyValue(key, b"", 0, listed.revision, 0) for key in vanished]
        events = [
            *(WatchEvent(EventType.DELETE, kv) for kv in gone),
            *(WatchEvent(EventType.PUT, kv) for kv in listed.kvs),
        ]
        self._known = present
        self.revision = listed.revision
        return WatchBatch(listed.revision, tuple(events), reset=True)


def split_last_revision(
    events: Sequence[WatchEvent],
) -> tuple[Sequence[WatchEvent], Sequence[WatchEvent]]:
    """Events in order, less those of the last revision, and those: more of them may be to come."""
    if not events:
        return (), ()
    last = events[-1].kv.mod_revision
    first = next(i for i, event in enumerate(events) if event.kv.mod_revision == last)
    return events[:first], events[first:]
