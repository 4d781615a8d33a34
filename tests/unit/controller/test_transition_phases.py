"""Every move of a running transition, and what each of them writes."""

import dataclasses
import json

import pytest

from moectl.controller import lifecycle
from moectl.controller.decision import Cause, cause_of
from moectl.core.plan import Phase, Placement
from moectl.core.records import TransitionRecord, from_json
from moectl.core.transitions import WorkerState

NOW = 1000.0


def advanced(fleet, now: float = NOW) -> tuple[TransitionRecord | None, dict, tuple]:
    """The record after the next move (None: it waits), all puts, and all deletes."""
    snapshot = fleet.snapshot
    change, _ = lifecycle.advance(snapshot.running("chat"), snapshot, now, fleet.limits)
    if change is None:
        return None, {}, ()
    puts = dict(change.puts)
    record = from_json(TransitionRecord, puts[fleet.keys.transition("op-2")])
    assert fleet.keys.transition("op-2") in dict(change.guards)
    return record, puts, change.deletes


def test_prepare_waits_until_every_node_is_ready(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4)
    assert advanced(fleet)[0] is None
    fleet.answer("n1", Phase.PREPARE)
    assert advanced(fleet)[0] is None


def test_commit_writes_the_placement_in_the_same_transaction(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    begun = fleet.begin(4)
    fleet.answer("n1", Phase.PREPARE, bytes_copied=10, wait_ms=5)
    fleet.answer("n2", Phase.PREPARE, bytes_copied=20, wait_ms=3)
    record, puts, _ = advanced(fleet)
    assert record.phase is Phase.COMMIT
    assert from_json(Placement, puts[fleet.keys.placement("chat")]) == begun.new
    assert record.actual["bytes_copied"] == 30
    assert record.actual["wait_ms"] == 5
    assert record.deadline_at == NOW + fleet.limits.commit_s


@pytest.mark.parametrize(
    ("phase", "following"),
    [(Phase.COMMIT, Phase.RETIRE), (Phase.RETIRE, Phase.DONE), (Phase.FORFEIT, Phase.FORFEITED)],
)
def test_each_later_phase_ends_when_all_have_answered(fleet, phase, following) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4, phase)
    for node in ("n1", "n2"):
        fleet.answer(node, phase)
    record, puts, deletes = advanced(fleet)
    assert record.phase is following
    assert fleet.keys.placement("chat") not in puts
    is_over = following in (Phase.DONE, Phase.FORFEITED)
    assert (fleet.keys.active_of("chat") in deletes) == is_over


def test_an_answer_to_another_phase_does_not_count(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4, Phase.COMMIT)
    for node in ("n1", "n2"):
        fleet.answer(node, Phase.PREPARE)
    assert advanced(fleet)[0] is None


def test_one_refusal_forfeits_and_is_named(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4)
    fleet.answer("n2", Phase.PREPARE, ok=False)
    record, puts, _ = advanced(fleet)
    assert record.phase is Phase.FORFEIT
    assert record.reason == "PrepareFailed: n2: cannot"
    assert fleet.keys.placement("chat") not in puts


def test_a_refusal_after_the_decision_rolls_forward(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4, Phase.COMMIT)
    fleet.answer("n1", Phase.COMMIT)
    fleet.answer("n2", Phase.COMMIT, ok=False)
    record, _, _ = advanced(fleet)
    assert record.phase is Phase.RETIRE
    assert cause_of(record.reason) is Cause.COMMIT_FAILED


@pytest.mark.parametrize(
    ("phase", "following", "cause"),
    [
        (Phase.PREPARE, Phase.FORFEIT, Cause.PREPARE_DEADLINE),
        (Phase.COMMIT, Phase.RETIRE, Cause.COMMIT_DEADLINE),
        (Phase.RETIRE, Phase.DONE, Cause.RETIRE_DEADLINE),
        (Phase.FORFEIT, Phase.FORFEITED, None),
    ],
)
def test_no_phase_waits_for_ever(fleet, phase, following, cause) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4, phase)
    fleet.answer("n1", phase)
    assert advanced(fleet, NOW + 29)[0] is None
    record, _, _ = advanced(fleet, NOW + 30)
    assert record.phase is following
    assert cause_of(record.reason) is cause
    assert cause is None or "n2" in record.reason


def test_a_lost_worker_forfeits_a_prepare_at_once(fleet) -> None:
    fleet.declare(4)
    placement = fleet.place(2)
    fleet.begin(4)
    fleet.change_state(placement.ranks[1], WorkerState.LOST)
    record, _, _ = advanced(fleet)
    assert record.phase is Phase.FORFEIT
    assert cause_of(record.reason) is Cause.WORKER_LOST


def test_an_old_death_of_a_joining_device_is_not_held_against_it(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    begun = fleet.begin(4)
    fleet.report(begun.new.ranks[3], 3, 1, WorkerState.LOST, instance=begun.new.instances[3] - 1)
    assert advanced(fleet)[0] is None


def test_a_lost_node_forfeits_a_prepare(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4)
    fleet.lose_node("n2")
    record, _, _ = advanced(fleet)
    assert cause_of(record.reason) is Cause.NODE_LOST


def test_after_the_decision_a_death_shortens_the_wait(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    begun = fleet.begin(4, Phase.COMMIT)
    fleet.answer("n1", Phase.COMMIT)
    fleet.report(begun.new.ranks[3], 3, 0, WorkerState.LOST, instance=begun.new.instances[3])
    assert advanced(fleet, NOW)[0] is None
    record, _, _ = advanced(fleet, NOW - 1 + fleet.limits.broken_s)
    assert record.phase is Phase.RETIRE


def test_a_deleted_model_forfeits_what_prepares_for_it(fleet) -> None:
    fleet.place(2)
    fleet.begin(4)
    record, _, _ = advanced(fleet)
    assert cause_of(record.reason) is Cause.DELETED


def test_every_move_tells_an_event_with_the_operation(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    fleet.begin(4)
    fleet.answer("n2", Phase.PREPARE, ok=False)
    snapshot = fleet.snapshot
    change, _ = lifecycle.advance(snapshot.running("chat"), snapshot, NOW, fleet.limits)
    (event,) = change.events
    assert (event.reason, event.severity) == ("ScaleForfeiting", "warning")
    assert event.operation_id == "op-2"
    json.dumps(dict(change.puts))


def test_figures_that_run_side_by_side_take_the_slowest(fleet) -> None:
    fleet.answer("n1", Phase.COMMIT, pause_ms=3, flip_step=10, pages_freed=4)
    fleet.answer("n2", Phase.COMMIT, pause_ms=5, flip_step=11, pages_freed=5)
    acks = fleet.snapshot.acks["op-2"]
    merged = lifecycle.merge_figures({"kept": 1.0}, acks, Phase.COMMIT)
    assert merged == {"kept": 1.0, "pause_ms": 5, "flip_step": 11, "pages_freed": 9}


def test_a_refusal_whose_cause_was_a_death_is_known_as_one_in_the_end(fleet) -> None:
    fleet.declare(4)
    fleet.place(2)
    begun = fleet.begin(4, Phase.FORFEIT)
    refused = dataclasses.replace(begun, reason="PrepareFailed: n2: the worker died")
    fleet.parts["transitions"]["op-2"] = fleet.seen(refused)
    fleet.report(begun.new.ranks[2], 2, 0, WorkerState.LOST, begun.new.instances[2])
    for node in ("n1", "n2"):
        fleet.answer(node, Phase.FORFEIT)
    record, _, _ = advanced(fleet)
    assert record.phase is Phase.FORFEITED
    assert cause_of(record.reason) is Cause.WORKER_LOST
