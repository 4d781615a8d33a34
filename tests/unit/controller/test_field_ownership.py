"""Every leaf of a spec has one owner: who may change it, and whose it is then."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.controller import ownership
from moectl.controller.ownership import Writer
from moectl.core.errors import ConflictError, NotFoundError, RefusedError
from moectl.core.fields import GITOPS, FieldNote, leaves
from moectl.core.records import SpecRecord

GIT = Writer("gitops", origin={"commit": "1a2b3c", "path": "chat.yaml"})


def record(spec: dict, writer: Writer, seen: SpecRecord | None = None) -> SpecRecord:
    """What the store holds after this writer was let through."""
    merged = ownership.merge(seen, spec, writer)
    return SpecRecord(
        "Model",
        "chat",
        seen.generation + 1 if seen else 1,
        merged.spec,
        "op",
        0.0,
        writer.owner,
        merged.fields,
        dict(writer.origin) or (seen.origin if seen else {}),
    )


def test_people_hand_over_to_each_other_and_machines_are_asked_first() -> None:
    first = record({"a": 1, "b": {"c": 1}}, Writer("ann"))
    second = record({"a": 2, "b": {"c": 1}}, Writer("bob"), first)
    assert {p: n.owner for p, n in second.fields.items()} == {"a": "bob", "b.c": "ann"}
    auto = record({"a": 1}, Writer("autoscaler"))
    with pytest.raises(ConflictError, match="autoscaler"):
        record({"a": 2}, Writer("ann"), auto)


def test_machines_write_round_what_is_not_theirs() -> None:
    seen = record({"a": 1, "b": 1}, GIT)
    seen = record({"a": 5, "b": 1}, dataclasses.replace(Writer("ann"), take=True), seen)
    merged = ownership.merge(seen, {"a": 1, "b": 2}, GIT)
    assert (merged.spec, merged.kept) == ({"a": 5, "b": 2}, ("a",))
    assert merged.fields["a"].owner == "ann" and merged.fields["a"].before == "gitops"


def test_a_release_gives_back_and_only_what_was_taken() -> None:
    seen = record({"a": 1}, GIT)
    taken = record({"a": 2}, Writer("ann", take=True), seen)
    assert ownership.release(taken, "a", "ann")["a"].owner == "gitops"
    with pytest.raises(RefusedError):
        ownership.release(seen, "a", "ann")
    with pytest.raises(NotFoundError):
        ownership.release(seen, "z", "ann")


def test_records_written_before_owners_were_kept_belong_to_their_last_writer() -> None:
    old = SpecRecord("Model", "chat", 3, {"a": 1}, "op", 0.0, "ann")
    assert ownership.notes_of(old)["a"].owner == "ann"
    assert "a (generation 3 by ann)" in ownership.stale(old, 2).message


SPECS = st.fixed_dictionaries(
    {
        "a": st.integers(0, 2),
        "b": st.fixed_dictionaries(
            {"c": st.integers(0, 2), "d": st.lists(st.integers(), max_size=2)}
        ),
        "e": st.none() | st.integers(0, 1),
    }
)
WRITERS = st.builds(
    Writer, st.sampled_from(["ann", "bob", "gitops", "autoscaler"]), take=st.booleans()
)


@given(st.lists(st.tuples(SPECS, WRITERS), min_size=1, max_size=8))
def test_after_any_writes_every_leaf_has_one_owner_and_machines_never_lose_one_unasked(
    writes: list,
) -> None:
    seen = None
    for spec, writer in writes:
        try:
            after = record(spec, writer, seen)
        except ConflictError:
            assert seen is not None and not writer.take and not writer.is_machine
            continue
        assert set(after.fields) == {path for path, _ in leaves(after.spec)}
        for path, note in (seen.fields if seen else {}).items():
            moved = after.fields[path].owner != note.owner
            if moved and note.owner in ("gitops", "autoscaler"):
                assert writer.take
        seen = after


def test_a_field_is_taken_also_when_its_value_is_right_already() -> None:
    seen = SpecRecord(
        "Model", "chat", 3, {"a": 1, "b": 2}, "op", 0.0, GITOPS,
        {"a": FieldNote(GITOPS, 2), "b": FieldNote("ann", 3)},
    )  # fmt: skip
    taken = ownership.take(seen, "a", Writer("ann", take=True))
    assert taken["a"] == FieldNote("ann", 2, GITOPS) and taken["b"] == FieldNote("ann", 3)
    assert ownership.take(seen, "a", Writer("ann")) is None  # nobody asked for it
    assert ownership.take(seen, "b", Writer("bob", take=True)) is None  # people hand over
