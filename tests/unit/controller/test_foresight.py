"""A move and the status that follows from it are one write, and nothing is planned twice."""

import dataclasses

import pytest

from moectl.controller import intents, planning
from moectl.controller.admission import Ground
from moectl.controller.foresight import ahead
from moectl.controller.reconcile import reconcile
from moectl.core.plan import Phase, Placement
from moectl.core.records import ModelStatus, TransitionRecord, from_json

NOW = 1000.0


def decide(fleet):
    return reconcile(fleet.snapshot, fleet.facts, NOW, fleet.limits)


def carry_out(fleet, change) -> None:
    """Make a change true in the records of the fleet, as the store would."""
    keys = fleet.keys
    kinds = {"transitions": TransitionRecord, "placements": Placement, "status": ModelStatus}
    for key, text in change.puts:
        table, _, name = key.removeprefix(keys.root).partition("/")
        value = from_json(kinds[table], text) if table in kinds else text
        fleet.parts[table][name] = fleet.seen(value)
    for key in change.deletes:
        table, _, name = key.removeprefix(keys.root).partition("/")
        fleet.parts[table].pop(name)


def settled(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    (change,) = decide(fleet).changes
    carry_out(fleet, change)
    assert decide(fleet).changes == ()


def under_way(fleet, phase: Phase) -> None:
    """A scale to 4 in a phase that both nodes have answered, with a status that says so."""
    settled(fleet)
    fleet.declare(4, generation=2)
    record = fleet.begin(4, phase)
    if phase in (Phase.COMMIT, Phase.RETIRE):
        fleet.parts["placements"]["chat"] = fleet.seen(record.new)
        for rank, device in enumerate(record.new.ranks):
            fleet.report(device, rank, record.new.epoch, instance=record.new.instances[rank])
    for change in decide(fleet).changes:
        carry_out(fleet, change)
    for node in ("n1", "n2"):
        fleet.answer(node, phase)


def test_a_beginning_says_so_in_the_same_transaction(fleet) -> None:
    settled(fleet)
    fleet.declare(4, generation=2)
    (change,) = decide(fleet).changes
    assert change.reason == "Scaling"
    assert fleet.keys.status_of("chat") in dict(change.puts)
    assert dict(change.guards)[fleet.keys.status_of("chat")] > 0
    carry_out(fleet, change)
    assert decide(fleet).changes == ()


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.COMMIT, Phase.RETIRE, Phase.FORFEIT])
def test_after_a_move_nothing_is_left_to_be_said(fleet, phase) -> None:
    under_way(fleet, phase)
    (change,) = decide(fleet).changes
    assert fleet.keys.transition("op-2") in dict(change.puts)
    carry_out(fleet, change)
    assert [later.reason for later in decide(fleet).changes] == []


def test_looking_ahead_shows_what_the_store_will_show(fleet) -> None:
    under_way(fleet, Phase.RETIRE)
    (change,) = decide(fleet).changes
    foreseen = ahead(fleet.snapshot, change)
    carry_out(fleet, change)
    seen = fleet.snapshot
    for table in ("transitions", "placements", "active"):
        then, now = getattr(foreseen, table), getattr(seen, table)
        assert {k: v.value for k, v in then.items()} == {k: v.value for k, v in now.items()}
    assert foreseen.running("chat") is None


def test_what_was_admitted_is_not_planned_again_by_the_loop(fleet) -> None:
    settled(fleet)
    planning.planned.cache_clear()
    ground = Ground(fleet.snapshot, fleet.facts, fleet.limits)
    accepted = intents.decide_scale("chat", "4", ground, intents.Caller("ann", NOW, "op-2"))
    fleet.declare(4, generation=2)
    (change,) = decide(fleet).changes
    info = planning.planned.cache_info()
    assert (info.misses, info.hits) == (1, 1)
    (record,) = [r for _, r in change.records if isinstance(r, TransitionRecord)]
    assert accepted.body["plan"]["prediction"]["bytes_moved"] == record.prediction.bytes_moved


def test_another_picture_is_planned_anew(fleet) -> None:
    settled(fleet)
    planning.planned.cache_clear()
    fleet.declare(4, generation=2)
    decide(fleet)
    node = fleet.parts["nodes"]["n2"]
    small = tuple(dataclasses.replace(d, hbm_bytes=d.hbm_bytes // 2) for d in node.devices)
    fleet.parts["nodes"]["n2"] = dataclasses.replace(node, devices=small)
    decide(fleet)
    assert planning.planned.cache_info().misses == 2
