"""What will the picture be once a change has happened?

Pure. A status is derived from the picture, so the status that follows a move of a transition can be
written in the transaction of the move itself: half the writes, half the wake-ups of everyone who
watches, and no moment at which the two disagree.
"""

import dataclasses
from typing import Any

from .decision import Change
from .observe import Seen, Snapshot

UNWRITTEN = 0  # the revision of a record that is still to be written: nothing may be guarded by it


def ahead(snapshot: Snapshot, change: Change) -> Snapshot:
    """The snapshot with the transitions, placements and running operations that a change leaves."""
    keys = snapshot.keys
    tables: dict[str, dict[str, Any]] = {
        keys.transitions: dict(snapshot.transitions),
        keys.placements: dict(snapshot.placements),
        keys.active: dict(snapshot.active),
    }
    for prefix, table in tables.items():
        for key, record in change.records:
            if key.startswith(prefix):
                table[key.removeprefix(prefix)] = Seen(record, UNWRITTEN)
        for key in change.deletes:
            table.pop(key.removeprefix(prefix), None)
    return dataclasses.replace(
        snapshot,
        transitions=tables[keys.transitions],
        placements=tables[keys.placements],
        active=tables[keys.active],
    )


def together(change: Change, following: Change) -> Change:
    """Both in one transaction, told as the first."""
    return dataclasses.replace(
        change,
        guards=tuple((dict(change.guards) | dict(following.guards)).items()),
        puts=change.puts + following.puts,
        deletes=change.deletes + following.deletes,
        events=change.events + following.events,
        records=change.records + following.records,
    )
