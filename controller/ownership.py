"""May this writer change these fields, and who owns them afterwards? Pure.

Every leaf of a spec has one owner, so GitOps, an autoscaler and people never write over each other
in turns. A person who changes a leaf of `gitops` or `autoscaler` is refused by name of commit and
file, unless they take it; what was taken is theirs until they release it, and the machine writes
round it meanwhile. People among themselves simply hand over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConflictError, NotFoundError, RefusedError
from ..core.fields import GITOPS, MACHINES, FieldNote, changed_leaves, leaf, leaves, with_leaf
from ..core.records import SpecRecord


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes a spec: `gitops` with its origin, `autoscaler`, or a person's token name."""

    owner: str
    take: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)  # of gitops: commit and path

    @property
    def is_machine(self) -> bool:
        """Whether it writes again and again by itself."""
        return self.owner in MACHINES


@dataclass(frozen=True, slots=True)
class Merged:
    """What may be written: the spec, the owner of every leaf, and what the writer left alone."""

    spec: dict[str, Any]
    fields: dict[str, FieldNote]
    kept: tuple[str, ...] = ()  # leaves that have another owner, left as they are


def merge(seen: SpecRecord | None, wanted: dict[str, Any], writer: Writer) -> Merged:
    """The spec as this writer may make it. Raises ConflictError naming each foreign leaf."""
    if seen is None:
        notes = {path: FieldNote(writer.owner, 1) for path, _ in leaves(wanted)}
        return Merged(wanted, notes)
    notes, spec = notes_of(seen), wanted
    foreign, kept = [], []
    for path in changed_leaves(seen.spec, wanted):
        note = notes.get(path)
        if note is None or note.owner == writer.owner or writer.take:
            continue
        if writer.is_machine:
            spec = _keep(spec, seen.spec, path)
            kept.append(path)
        elif note.owner in MACHINES:
            foreign.append(path)
    if foreign:
        raise _owned(seen, foreign, notes)
    return Merged(spec, _notes_after(seen, spec, writer), tuple(kept))


def notes_of(record: SpecRecord) -> dict[str, FieldNote]:
    """The note of every leaf; what an older record does not say belongs to its last writer."""
    rest = FieldNote(record.changed_by, record.generation)
    return {path: record.fields.get(path, rest) for path, _ in leaves(record.spec)}


def _keep(spec: dict[str, Any], old: dict[str, Any], path: str) -> dict[str, Any]:
    try:
        return with_leaf(spec, path, leaf(old, path))
    except KeyError:  # the writer adds a leaf inside one that another owns: it is not added
        return spec


def _notes_after(seen: SpecRecord, spec: dict[str, Any], writer: Writer) -> dict[str, FieldNote]:
    before, generation = notes_of(seen), seen.generation + 1
    changed = set(changed_leaves(seen.spec, spec))
    after = {}
    for path, _ in leaves(spec):
        note = before.get(path)
        if note is None:
            after[path] = FieldNote(writer.owner, generation)
        elif path in changed:
            taken_from = note.owner if note.owner in MACHINES else note.before
            lends = "" if taken_from == writer.owner else taken_from
            after[path] = FieldNote(writer.owner, generation, lends)
        else:
            after[path] = note
    return after


def _owned(seen: SpecRecord, paths: list[str], notes: dict[str, FieldNote]) -> ConflictError:
    owners = sorted({notes[path].owner for path in paths})
    where = ""
    if GITOPS in owners and seen.origin:
        commit, path = seen.origin.get("commit", "?"), seen.origin.get("path", "?")
        where = f" (commit {commit}, {path})"
    name = f"{seen.kind.lower()}/{seen.name}"
    return ConflictError(
        f"{name}: {', '.join(paths)} belongs to {' and '.join(owners)}{where}",
        next_step="change it there (`moectl scale --write FILE` patches the file), or repeat with"
        " --take and give it back later with `moectl release`",
    )


def stale(seen: SpecRecord, expected: int) -> ConflictError:
    """The refusal of a request that was planned on an older generation; it names what changed."""
    notes = notes_of(seen)
    newer = [
        f"{path} (generation {note.generation} by {note.owner})"
        for path, note in sorted(notes.items())
        if note.generation > expected
    ]
    what = ", ".join(newer) if newer else "nothing that is still there"
    return ConflictError(
        f"{seen.kind.lower()}/{seen.name}: generation is {seen.generation}, not {expected};"
        f" changed since: {what}",
        next_step="look at it again and repeat the request",
    )


def take(seen: SpecRecord, path: str, writer: Writer) -> dict[str, FieldNote] | None:
    """The notes after a person took a field whose value stays; None when it is not a machine's."""
    notes = notes_of(seen)
    note = notes[path]
    if not writer.take or writer.is_machine or note.owner not in MACHINES:
        return None
    return notes | {path: FieldNote(writer.owner, note.generation, note.owner)}


def release(seen: SpecRecord, path: str, person: str) -> dict[str, FieldNote]:
    """The notes after a field was given back to the owner that it was taken from."""
    notes = notes_of(seen)
    note = notes.get(path)
    if note is None:
        raise NotFoundError(
            f"{seen.kind.lower()}/{seen.name} has no field {path!r}",
            next_step=f"fields: {', '.join(sorted(notes))}",
        )
    if not note.before:
        raise RefusedError(
            f"{path} belongs to {note.owner} and was taken from nobody",
            next_step="`moectl get models NAME --show-owner` shows who owns what",
        )
    return notes | {path: FieldNote(note.before, note.generation)}
