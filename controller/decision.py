"""What may a decision of the control plane consist of?

A `Change` is one fenced transaction: all of it happens or none of it. The pure code makes changes,
the loop and the API commit them; nobody else writes. Reasons are enum words with numbers in the
message, so that tests and machines never match prose.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..core.records import EventRecord, to_json


class Cause(StrEnum):
    """Why a transition ended without committing, or went on without all answers."""

    PREPARE_FAILED = "PrepareFailed"  # a node said no
    PREPARE_DEADLINE = "PrepareDeadline"
    COMMIT_DEADLINE = "CommitDeadline"
    COMMIT_FAILED = "CommitFailed"  # a node reported an error after the decision: rolled forward
    RETIRE_DEADLINE = "RetireDeadline"
    WORKER_LOST = "WorkerLost"
    NODE_LOST = "NodeLost"
    DELETED = "Deleted"  # the model was deleted meanwhile
    CANCELLED = "Cancelled"  # a person took it back


# Causes that say nothing against the change itself: it is tried again.
RETRYABLE = frozenset({Cause.WORKER_LOST, Cause.NODE_LOST})


def cause_text(cause: Cause, detail: str) -> str:
    """How a cause is written into TransitionRecord.reason."""
    return f"{cause}: {detail}" if detail else str(cause)


def cause_of(reason: str) -> Cause | None:
    """The inverse of `cause_text`; None when there is no cause in it."""
    word = reason.partition(":")[0]
    return Cause(word) if word in {str(cause) for cause in Cause} else None


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction. `guards` name the revision of each record it was decided on (0: absent).

    `records` are the values behind `puts`, for whoever looks ahead.
    """

    subject: str  # "model/chat"
    reason: str
    guards: tuple[tuple[str, int], ...]
    puts: tuple[tuple[str, str], ...] = ()
    deletes: tuple[str, ...] = ()
    events: tuple[EventRecord, ...] = ()
    records: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Changes in order, and the next time at which the clock alone would change the answer."""

    changes: tuple[Change, ...] = ()
    wake_at: float | None = None


@dataclass(slots=True)
class Draft:
    """Collects the parts of one Change in the order in which they are thought of."""

    subject: str
    reason: str
    guards: dict[str, int] = field(default_factory=dict)
    puts: dict[str, str] = field(default_factory=dict)
    deletes: dict[str, None] = field(default_factory=dict)
    events: list[EventRecord] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)

    def guard(self, key: str, mod_revision: int) -> "Draft":
        """Only if the record is still as it was seen."""
        self.guards[key] = mod_revision
        return self

    def put(self, key: str, record: Any) -> "Draft":
        """Write a record, or plain text."""
        self.puts[key] = record if isinstance(record, str) else to_json(record)
        self.records[key] = record
        return self

    def delete(self, key: str) -> "Draft":
        """Remove a record."""
        self.deletes[key] = None
        return self

    def tell(self, at: float, severity: str, message: str, operation_id: str = "") -> "Draft":
        """Add an event about the subject, named by the change's reason."""
        name = f"{int(at * 1000):013d}-{self.subject.replace('/', '.')}-{self.reason}"
        event_id = f"{name}-{len(self.events)}"
        self.events.append(
            EventRecord(event_id, at, severity, self.subject, self.reason, message, operation_id)
        )
        return self

    def done(self) -> Change:
        """The finished change."""
        return Change(
            self.subject,
            self.reason,
            tuple(self.guards.items()),
            tuple(self.puts.items()),
            tuple(self.deletes),
            tuple(self.events),
            tuple(self.records.items()),
        )
