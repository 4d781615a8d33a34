"""Status never claims more than is known, and never less: generations, flips, the five layers."""

import dataclasses

import pytest

from moectl.cli.fleet_view import fleet_from_plain
from moectl.controller import views
from moectl.controller.reconcile import reconcile
from moectl.core.plan import Phase
from moectl.core.records import ConditionStatus, ModelStatus, from_json
from moectl.core.transitions import WorkerState

NOW = 1000.0
TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


def status_of(fleet) -> ModelStatus:
    """The status as the loop would write it now; written, so that the next one follows it."""
    key = fleet.keys.status_of("chat")
    for change in reconcile(fleet.snapshot, fleet.facts, NOW, fleet.limits).changes:
        if key in dict(change.puts):
            fleet.tell_status(from_json(ModelStatus, dict(change.puts)[key]))
    return fleet.snapshot.status["chat"].value


def condition(status: ModelStatus, kind: str):
    return next(c for c in status.conditions if c.type == kind)


def is_ready(fleet) -> bool:
    plain = views.fleet(fleet.snapshot, "test", NOW, fleet.limits)
    return fleet_from_plain(plain).model("chat").is_ready


def test_success_is_claimed_for_the_generation_that_was_carried_out_and_no_other(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    assert condition(status_of(fleet), "Ready").observed_generation == 1
    assert is_ready(fleet)
    fleet.declare(4, generation=2)
    assert not is_ready(fleet)  # also before any loop has looked at it
    fleet.begin(4)
    running = status_of(fleet)
    ready, admitted = condition(running, "Ready"), condition(running, "Admitted")
    assert (ready.status, ready.observed_generation) == (TRUE, 1)
    assert (admitted.status, admitted.observed_generation) == (TRUE, 2)
    assert not is_ready(fleet)


def test_a_generation_that_failed_is_observed_and_never_ready(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    status_of(fleet)
    fleet.declare(4, generation=2)
    record = dataclasses.replace(fleet.begin(4, Phase.FORFEITED), reason="PrepareFailed: n1: no")
    fleet.parts["transitions"]["op-2"] = fleet.seen(record)
    del fleet.parts["active"]["chat"]
    failed = status_of(fleet)
    assert (failed.observed_generation, failed.failed_generation) == (2, 2)
    ready = condition(failed, "Ready")
    assert (ready.status, ready.observed_generation) == (TRUE, 1)  # it serves, as generation 1
    assert not is_ready(fleet)


def flip(fleet, phase: Phase = Phase.COMMIT, reason: str = ""):
    """`chat` goes from 2 to 4 and was committed: the placement is new, the workers are not yet."""
    fleet.declare(2)
    fleet.place(2)
    status_of(fleet)
    fleet.declare(4, generation=2)
    record = dataclasses.replace(fleet.begin(4, phase), reason=reason)
    fleet.parts["transitions"]["op-2"] = fleet.seen(record)
    fleet.parts["placements"]["chat"] = fleet.seen(record.new)
    for rank, device in enumerate(record.new.ranks):
        if device not in record.old.ranks:
            instance = record.new.instances[rank]
            fleet.report(device, rank, 0, WorkerState.PREPARED, instance)
    return record


@pytest.mark.parametrize("joiner", [WorkerState.PREPARED, WorkerState.STARTING, None])
@pytest.mark.parametrize("phase", [Phase.COMMIT, Phase.RETIRE])
def test_a_model_serves_while_it_flips(fleet, phase, joiner) -> None:
    record = flip(fleet, phase)
    late = record.new.ranks[-1]  # it has answered; its record may lag behind its answer
    if joiner is None:
        del fleet.parts["workers"]["chat"][late]
    else:
        fleet.change_state(late, joiner)
    widths = []
    for rank, device in enumerate([None, *record.new.ranks]):
        if device is not None:
            at = record.new.ranks.index(device)
            fleet.report(device, at, record.new.epoch, instance=record.new.instances[at])
        status = status_of(fleet)
        assert condition(status, "Ready").status is TRUE, rank
        widths.append(status.effective_width)
    assert widths == sorted(widths) and (widths[0], widths[-1]) == (2, 4)


def test_parked_ranks_are_known_not_to_serve(fleet) -> None:
    record = flip(fleet)
    fleet.change_state(record.old.ranks[0], WorkerState.PARKED)
    status = status_of(fleet)
    ready = condition(status, "Ready")
    assert (ready.status, ready.reason, status.effective_width) == (FALSE, "WorkerParked", 0)


def test_what_is_not_known_is_unknown(fleet) -> None:
    record = flip(fleet, Phase.RETIRE, "CommitDeadline: no answer from n2")
    assert condition(status_of(fleet), "Ready").status is UNKNOWN  # it went on without an answer
    fleet.parts["transitions"]["op-2"] = fleet.seen(dataclasses.replace(record, reason=""))
    fleet.report(record.old.ranks[0], 0, 7)
    ready = condition(status_of(fleet), "Ready")
    assert (ready.status, ready.reason) == (UNKNOWN, "EpochBehind")  # an epoch that nobody planned
