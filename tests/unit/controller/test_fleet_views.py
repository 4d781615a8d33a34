"""What the API shows: one entry per operation, the whole fleet as plain JSON, nothing too large."""

import dataclasses
import json

from moectl.cli.fleet_view import transition_from_plain
from moectl.controller import planning, views
from moectl.core.plan import Phase, StepKind, TransitionKind
from moectl.core.records import DeviceUsage, NodeStats, WorkerStats, to_json

NOW = 1000.0


def end(fleet, operation_id: str, phase: Phase, reason: str = "", attempt: int = 1) -> None:
    record = fleet.begin(4, operation_id=operation_id)
    ended = dataclasses.replace(record, phase=phase, reason=reason, attempt=attempt)
    fleet.parts["transitions"][operation_id] = fleet.seen(ended)
    del fleet.parts["active"]["chat"]


def test_attempts_of_one_operation_are_one_entry_that_goes_on(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    end(fleet, "op-2", Phase.FORFEITED, "WorkerLost: chat on n1/d0")
    (shown,) = views.transitions(fleet.snapshot, fleet.limits)
    assert (shown["phase"], shown["final"]) == ("forfeit", False)  # another attempt follows
    end(fleet, "op-2~2", Phase.DONE, attempt=2)
    (shown,) = views.transitions(fleet.snapshot, fleet.limits)
    assert (shown["operation_id"], shown["record_id"]) == ("op-2", "op-2~2")
    assert (shown["phase"], shown["attempt"], shown["final"]) == ("done", 2, True)


def test_a_change_that_failed_for_good_is_final(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    end(fleet, "op-2", Phase.FORFEITED, "PrepareFailed: n2: cannot")
    (shown,) = views.transitions(fleet.snapshot, fleet.limits)
    assert (shown["phase"], shown["final"]) == ("forfeited", True)


def test_widening_again_after_a_loss_is_an_entry_of_its_own(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    end(fleet, "op-2", Phase.DONE)
    end(fleet, "op-2~2", Phase.DONE, attempt=2)
    shown = views.transitions(fleet.snapshot, fleet.limits)
    assert [item["operation_id"] for item in shown] == ["op-2", "op-2~2"]


def test_the_fleet_is_plain_json_with_usage_and_statistics_where_they_belong(fleet) -> None:
    fleet.declare(2)
    placement = fleet.place(2)
    stats = WorkerStats(
        "chat", 0, str(placement.ranks[0]), 1, 1, 0, 5, 7, 9, 1.0, 2.0, 3, 64, ((1, 2), (3, 4))
    )
    usage = DeviceUsage("d0", 16384, 100, 90, 0, {"experts": 10})
    fleet.parts["stats"]["n1"] = NodeStats("n1", NOW, (stats,), (usage,))
    view = json.loads(json.dumps(views.fleet(fleet.snapshot, "test", NOW, fleet.limits)))
    assert view["nodes"][0]["usage"][0]["used"] == {"experts": 10}
    assert view["nodes"][1]["usage"] == []  # not reported yet: unknown, not zero
    (model,) = view["models"]
    assert model["stats"][0]["tokens_out"] == 5
    assert [worker["state"] for worker in model["workers"]] == ["serving", "serving"]
    assert (model["status"], model["active"]) == (None, None)


def test_a_record_too_large_for_the_store_leaves_out_what_stays(fleet) -> None:
    fleet.declare(4, generation=2)
    old = fleet.place(2)
    plan = fleet.plan(4, old)
    intent = planning.Intent("op-2", 2, NOW, 1, {})
    whole = planning.new_record(plan, intent, fleet.snapshot, NOW, fleet.limits)
    assert whole.steps == plan.steps
    tight = dataclasses.replace(fleet.limits, record_bytes_max=len(to_json(whole)) - 1)
    short = planning.new_record(plan, intent, fleet.snapshot, NOW, tight)
    assert not any(step.kind is StepKind.KEEP for step in short.steps)
    assert [s for s in plan.steps if s.kind is not StepKind.KEEP] == list(short.steps)
    assert short.kind is TransitionKind.SCALE


def test_an_operation_is_known_from_the_moment_it_is_accepted(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    assert views.accepted("op-0", fleet.snapshot, fleet.limits) is None
    there = views.accepted("op-1", fleet.snapshot, fleet.limits)
    assert (there["phase"], there["final"], there["to_width"]) == ("done", True, 2)
    fleet.declare(4, generation=2)
    shown = views.accepted("op-2", fleet.snapshot, fleet.limits)
    assert (shown["phase"], shown["from_width"], shown["to_width"]) == ("accepted", 2, 4)
    assert not transition_from_plain(shown).is_over
