"""What the reconcile function decides, case by case: a function needs no more than cases."""

import dataclasses

import pytest

from moectl.controller import attempts
from moectl.controller.health import HealthReason, examine
from moectl.controller.model_facts import NoFacts
from moectl.controller.reconcile import reconcile
from moectl.core.plan import DeviceId, Phase, StepKind
from moectl.core.records import ConditionStatus, ModelStatus, TransitionRecord, from_json
from moectl.core.transitions import WorkerState

NOW = 1000.0


def decide(fleet, now: float = NOW):
    return reconcile(fleet.snapshot, fleet.facts, now, fleet.limits)


def started(fleet, now: float = NOW) -> TransitionRecord | None:
    """The transition that the decision begins, if it begins one."""
    prefix = fleet.keys.transitions
    found = [
        from_json(TransitionRecord, value)
        for change in decide(fleet, now).changes
        for key, value in change.puts
        if key.startswith(prefix)
    ]
    return found[0] if found else None


def status_of(fleet, now: float = NOW) -> ModelStatus:
    key = fleet.keys.status_of("chat")
    for change in decide(fleet, now).changes:
        if key in dict(change.puts):
            return from_json(ModelStatus, dict(change.puts)[key])
    raise AssertionError("no status was written")


def write_status(fleet, now: float = NOW) -> ModelStatus:
    status = status_of(fleet, now)
    fleet.tell_status(status)
    return status


def condition(status: ModelStatus, kind: str):
    return next(c for c in status.conditions if c.type == kind)


def test_a_declared_model_is_created_with_its_own_operation(fleet) -> None:
    fleet.declare(2)
    record = started(fleet)
    assert (record.kind, record.operation_id, record.phase) == ("create", "op-1", Phase.PREPARE)
    assert record.accepted_at == NOW - 10  # when the intent was accepted, not when it was seen
    assert record.store_address == "n1:1"
    (change,) = decide(fleet).changes
    assert dict(change.guards)[fleet.keys.active_of("chat")] == 0
    assert fleet.keys.spec("Model", "chat") in dict(change.guards)


def test_the_same_picture_gives_the_same_decision(fleet) -> None:
    fleet.declare(3)
    assert decide(fleet) == decide(fleet)


def test_a_settled_fleet_changes_nothing_once_its_status_is_written(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    write_status(fleet)
    assert decide(fleet).changes == ()
    assert decide(fleet).wake_at is None


def test_another_width_is_a_scale(fleet) -> None:
    fleet.declare(3, generation=2)
    fleet.place(2)
    record = started(fleet)
    assert (record.kind, record.new.width, record.generation) == ("scale", 3, 2)


def with_settings(fleet, **engine) -> None:
    """Declare generation 2 of `chat` with other engine settings."""
    fleet.declare(2, generation=2)
    seen = fleet.parts["specs"][("Model", "chat")]
    spec = {**seen.value.spec, "engine": {**seen.value.spec["engine"], **engine}}
    record = dataclasses.replace(seen.value, spec=spec)
    fleet.parts["specs"][("Model", "chat")] = fleet.seen(record)


def test_other_engine_settings_come_into_force_by_an_epoch_that_moves_nothing(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    done = fleet.begin(2, Phase.DONE, "op-1")
    del fleet.parts["active"]["chat"]
    write_status(fleet)
    assert decide(fleet).changes == ()
    with_settings(fleet, prefillChunk=128, maxBatchTokens=256)
    record = started(fleet)
    assert (record.kind, record.operation_id, record.generation) == ("scale", "op-2", 2)
    assert record.model_spec["engine"]["prefillChunk"] == 128
    assert (record.new.ranks, record.new.owners) == (done.new.ranks, done.new.owners)
    assert record.new.instances == done.new.instances
    assert {step.kind for step in record.steps} == {StepKind.KEEP}


def test_a_generation_is_observed_only_when_its_settings_are_in_force(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    first = fleet.begin(2, Phase.DONE, "op-1")
    del fleet.parts["active"]["chat"]
    write_status(fleet)
    with_settings(fleet, threads=2)
    spec = fleet.parts["specs"][("Model", "chat")].value
    assert not attempts.is_settled("chat", spec, 2, fleet.snapshot, fleet.limits)
    second = dataclasses.replace(
        first, operation_id="op-2", accepted_at=NOW, model_spec=spec.spec, phase=Phase.PREPARE
    )
    fleet.parts["transitions"]["op-2"] = fleet.seen(second)
    assert attempts.settings_behind("chat", spec, fleet.snapshot)
    done = dataclasses.replace(second, phase=Phase.DONE)
    fleet.parts["transitions"]["op-2"] = fleet.seen(done)
    assert attempts.is_settled("chat", spec, 2, fleet.snapshot, fleet.limits)
    write_status(fleet)
    assert fleet.parts["status"]["chat"].value.observed_generation == 2
    assert decide(fleet).changes == ()


def test_a_model_nobody_declares_is_deleted_with_the_spec_it_runs_with(fleet) -> None:
    fleet.place(2)
    done = fleet.begin(2, Phase.DONE)
    del fleet.parts["active"]["chat"]
    record = started(fleet)
    assert (record.kind, record.new.width) == ("delete", 0)
    assert record.model_spec == done.model_spec


def test_a_lost_worker_is_healed_at_once(fleet) -> None:
    fleet.declare(2)
    placement = fleet.place(2)
    fleet.change_state(placement.ranks[1], WorkerState.LOST)
    record = started(fleet)
    assert (record.kind, record.new.width) == ("heal", 2)
    assert record.new.instances[0] == 1 < record.new.instances[1]
    assert record.prediction.bytes_moved == 0


@pytest.mark.parametrize(
    ("state", "grace"), [(WorkerState.PARKED, "parked_grace_s"), (None, "missing_grace_s")]
)
def test_unclear_trouble_is_healed_after_its_grace(fleet, state, grace) -> None:
    fleet.declare(2)
    placement = fleet.place(2)
    if state is None:
        del fleet.parts["workers"]["chat"][placement.ranks[1]]
    else:
        for device in placement.ranks:
            fleet.change_state(device, state)
    assert started(fleet) is None
    write_status(fleet)
    grace_s = getattr(fleet.limits, grace)
    assert decide(fleet).wake_at == NOW + grace_s
    assert started(fleet, NOW + grace_s - 0.1) is None
    assert started(fleet, NOW + grace_s).kind == "heal"


def test_parked_workers_are_joined_anew_and_not_restarted(fleet) -> None:
    fleet.declare(2)
    placement = fleet.place(2)
    for device in placement.ranks:
        fleet.change_state(device, WorkerState.PARKED)
    write_status(fleet)
    record = started(fleet, NOW + 2)
    assert record.new.instances == placement.instances
    assert record.new.epoch > placement.epoch


def test_a_group_that_is_parked_in_part_is_waited_for_until_a_lease_would_be_over(fleet) -> None:
    fleet.declare(3)
    placement = fleet.place(3)
    fleet.change_state(placement.ranks[0], WorkerState.PARKED)
    write_status(fleet)
    assert decide(fleet).wake_at == NOW + fleet.limits.split_grace_s
    fleet.lose_node("n2")  # it was dead, not slow
    assert started(fleet).kind == "heal"


def test_a_silent_node_is_waited_for_while_its_workers_may_serve(fleet) -> None:
    fleet.declare(3)
    fleet.place(3)
    fleet.lose_node("n2")
    status = write_status(fleet)
    ready = condition(status, "Ready")
    assert (ready.status, ready.reason) == (ConditionStatus.UNKNOWN, "NodeLost")
    assert started(fleet, NOW + 9) is None
    record = started(fleet, NOW + 10)
    assert (record.kind, record.new.width) == ("heal", 2)


def test_a_silent_node_is_not_waited_for_when_the_others_are_parked(fleet) -> None:
    fleet.declare(3)
    placement = fleet.place(3)
    fleet.lose_node("n2")
    fleet.change_state(placement.ranks[0], WorkerState.PARKED)
    assert started(fleet).kind == "heal"


def test_a_failed_generation_is_not_tried_again_and_says_so(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    record = fleet.begin(4)
    finish(fleet, record, Phase.FORFEITED, "PrepareFailed: n2: cannot")
    assert started(fleet) is None
    status = status_of(fleet)
    assert (status.failed_generation, status.observed_generation) == (2, 2)
    assert condition(status, "Progressing").reason == "Forfeited"


def finish(fleet, record: TransitionRecord, phase: Phase, reason: str = "") -> None:
    ended = dataclasses.replace(
        record, phase=phase, reason=reason, phase_at=record.phase_at | {str(phase): NOW}
    )
    fleet.parts["transitions"][record.operation_id] = fleet.seen(ended)
    fleet.parts["active"].pop("chat", None)


def test_a_lost_worker_speaks_not_against_the_change_so_it_is_tried_three_times(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    for attempt, name in enumerate(["op-2", "op-2~2", "op-2~3"], start=1):
        record = dataclasses.replace(fleet.begin(4, operation_id=name), attempt=attempt)
        finish(fleet, record, Phase.FORFEITED, "WorkerLost: chat on n1/d0")
        following = started(fleet)
        if attempt < 3:
            assert (following.operation_id, following.attempt) == (
                f"op-2~{attempt + 1}",
                attempt + 1,
            )
            assert following.new.epoch > record.new.epoch
    assert following is None
    assert status_of(fleet).failed_generation == 2


def test_healing_rests_after_three_failures_in_a_row(fleet) -> None:
    fleet.declare(2)
    placement = fleet.place(2)
    fleet.change_state(placement.ranks[1], WorkerState.LOST)
    for attempt in range(1, 4):
        record = started(fleet)
        assert record.attempt == attempt
        finish(fleet, record, Phase.FORFEITED, "WorkerLost: again")
    assert started(fleet) is None
    assert decide(fleet).wake_at == NOW + fleet.limits.heal_rest_s
    assert started(fleet, NOW + fleet.limits.heal_rest_s) is not None


def test_too_few_live_devices_wait_and_too_few_declared_ones_are_refused(fleet) -> None:
    fleet.declare(4)
    fleet.lose_node("n2")
    fleet.parts["specs"][("Cluster", "c")] = fleet.seen(cluster_record())
    status = write_status(fleet)
    assert condition(status, "Admitted").status is ConditionStatus.TRUE
    assert condition(status, "Placed").reason == "WaitingForDevices"
    assert status.observed_generation == 0
    fleet.declare(5)
    status = status_of(fleet)
    assert condition(status, "Admitted").reason == "Unplaceable"
    assert status.observed_generation == 1


def cluster_record():
    from moectl.core.records import SpecRecord

    devices = [{"id": d, "hbm": "64MiB", "pageSize": "16KiB"} for d in ("d0", "d1")]
    spec = {"nodes": [{"name": name, "devices": devices} for name in ("n1", "n2")]}
    return SpecRecord("Cluster", "c", 1, spec, "op", NOW, "test")


def test_an_unreadable_checkpoint_is_a_refusal_with_its_reason(fleet) -> None:
    fleet.declare(2)
    fleet.facts["/models/chat"] = NoFacts("model.safetensors is truncated")
    status = status_of(fleet)
    admitted = condition(status, "Admitted")
    assert (admitted.reason, admitted.message) == (
        "CheckpointUnreadable",
        "model.safetensors is truncated",
    )


def test_a_served_model_survives_the_loss_of_its_checkpoint(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    fleet.facts["/models/chat"] = NoFacts("gone")
    status = status_of(fleet)
    assert condition(status, "Admitted").status is ConditionStatus.TRUE
    assert condition(status, "Ready").status is ConditionStatus.TRUE


def test_one_new_transition_a_tick_so_that_bytes_are_counted_once(fleet) -> None:
    fleet.declare(2)
    fleet.declare(2, name="other")
    decision = decide(fleet)
    begun = [c for c in decision.changes if c.reason == "Creating"]
    assert len(begun) == 1
    assert decision.wake_at == NOW


def test_status_says_five_widths_and_keeps_the_time_of_a_condition(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    fleet.begin(4)
    first = write_status(fleet)
    widths = (first.desired_width, first.admitted_width, first.allocated_width)
    assert widths == (4, 4, 4)
    assert (first.joined_width, first.effective_width) == (2, 2)
    assert first.observed_generation == 0  # not carried out yet
    begun = fleet.snapshot.running("chat").value
    fleet.report(begun.new.ranks[2], 2, 0, WorkerState.PREPARED, begun.new.instances[2])
    later = status_of(fleet, NOW + 5)
    assert later.joined_width == 3
    assert condition(later, "Progressing").changed_at == NOW


def test_finished_transitions_are_forgotten_beyond_the_limit(fleet) -> None:
    fleet.limits = dataclasses.replace(fleet.limits, transitions_kept=2)
    fleet.declare(2)
    fleet.place(2)
    for number in range(4):
        record = fleet.begin(3, operation_id=f"old-{number}")
        record = dataclasses.replace(record, accepted_at=NOW - 100 + number)
        finish(fleet, record, Phase.DONE)
        fleet.answer("n1", Phase.DONE, operation_id=f"old-{number}")
    (prune,) = [c for c in decide(fleet).changes if c.reason == "HistoryPruned"]
    keys = fleet.keys
    assert set(prune.deletes) == {
        key for n in (0, 1) for key in (keys.transition(f"old-{n}"), keys.ack(f"old-{n}", "n1"))
    }


@pytest.mark.parametrize(
    ("state", "epoch", "reason"),
    [
        (WorkerState.SERVING, 1, HealthReason.SERVING),
        (WorkerState.LEAVING, 1, HealthReason.SERVING),
        (WorkerState.PARKED, 1, HealthReason.WORKER_PARKED),
        (WorkerState.LOST, 1, HealthReason.WORKER_LOST),
        (WorkerState.STOPPED, 1, HealthReason.WORKER_LOST),
        (WorkerState.SERVING, 0, HealthReason.EPOCH_BEHIND),
        (WorkerState.STARTING, 1, HealthReason.EPOCH_BEHIND),
    ],
)
def test_health_follows_what_the_worker_reports(fleet, state, epoch, reason) -> None:
    placement = fleet.place(2)
    device = DeviceId("n1", "d1")
    fleet.report(device, 1, epoch, state)
    health = examine(placement, fleet.snapshot, fleet.limits)
    assert health.reason is reason
    restarts = reason in (HealthReason.WORKER_LOST, HealthReason.EPOCH_BEHIND)
    assert health.restarted == (frozenset({device}) if restarts else frozenset())
