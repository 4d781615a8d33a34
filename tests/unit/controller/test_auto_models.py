"""A model whose spec says `auto`: what the controller makes of it, case by case."""

import dataclasses
import json
from pathlib import Path

import pytest

from moectl.controller.admission import Ground
from moectl.controller.auto_width import AUTO_PREFIX
from moectl.controller.intents import Caller, decide_apply, decide_scale, parse_declarations
from moectl.controller.observe import Seen
from moectl.controller.reconcile import reconcile
from moectl.core.errors import UnplaceableError
from moectl.core.plan import Phase
from moectl.core.records import ModelStatus, SpecRecord, TransitionRecord, from_json
from moectl.core.spec import model_spec_from_plain, to_plain

NOW = 1000.0
CONFIG = json.loads(
    (Path(__file__).parents[3] / "clusters/models/demo/config.json").read_text(encoding="utf-8")
)
SHAPE = {
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "hidden_size": 8,
    "moe_intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 16,
}
PLAIN = {
    "source": {"path": "/models/chat"},
    "parallelism": "auto",
    "memory": {"kvPerDevice": "1MiB"},
    "workload": {"inputTokens": 32, "outputTokens": 16},
}


@pytest.fixture
def auto(fleet):
    """The fleet with facts that carry a config, and `chat` declared with `auto`."""
    facts = dataclasses.replace(fleet.facts["/models/chat"], config={**CONFIG, **SHAPE})
    fleet.facts = {"/models/chat": facts}
    declare(fleet)
    return fleet


def declare(fleet, generation: int = 1, **changes: object) -> None:
    plain = to_plain(model_spec_from_plain(PLAIN | changes))
    record = SpecRecord("Model", "chat", generation, plain, f"op-{generation}", NOW - 10, "test")
    fleet.parts["specs"][("Model", "chat")] = fleet.seen(record)


def started(fleet, now: float = NOW) -> TransitionRecord | None:
    found = [
        from_json(TransitionRecord, value)
        for change in reconcile(fleet.snapshot, fleet.facts, now, fleet.limits).changes
        for key, value in change.puts
        if key.startswith(fleet.keys.transitions)
    ]
    return found[0] if found else None


def settle(fleet, now: float = NOW) -> ModelStatus:
    """Write the status that is due; returns it."""
    key = fleet.keys.status_of("chat")
    for change in reconcile(fleet.snapshot, fleet.facts, now, fleet.limits).changes:
        if key in dict(change.puts):
            fleet.tell_status(from_json(ModelStatus, dict(change.puts)[key]))
    status: ModelStatus = fleet.parts["status"]["chat"].value
    return status


def planned(status: ModelStatus):
    return next(c for c in status.conditions if c.type == "Planned")


def test_a_new_model_is_created_as_wide_as_the_planner_says(auto) -> None:
    record = started(auto)
    assert record is not None and (record.kind, record.operation_id) == ("create", "op-1")
    assert record.new.width == 4
    auto.place(4)
    status = settle(auto)
    assert (status.desired_width, status.observed_generation) == (4, 1)
    assert (planned(status).status, planned(status).reason) == ("True", "HighestRate")
    assert "4 of 4 devices" in planned(status).message
    assert reconcile(auto.snapshot, auto.facts, NOW, auto.limits).changes == ()


def test_a_model_with_a_declared_width_has_no_such_condition(fleet) -> None:
    fleet.declare(2)
    fleet.place(2)
    assert {c.type for c in settle(fleet).conditions} == {
        "Admitted",
        "Placed",
        "Progressing",
        "Ready",
    }


def test_a_node_that_joins_is_grown_onto_once_it_has_stayed(auto) -> None:
    auto.lose_node("n2")
    auto.place(2)
    settle(auto)
    auto.add_node("n2")  # its agent started at NOW
    assert started(auto, NOW + 1) is None
    decision = reconcile(auto.snapshot, auto.facts, NOW + 1, auto.limits)
    assert decision.wake_at == NOW + auto.limits.auto_settle_s
    record = started(auto, NOW + auto.limits.auto_settle_s)
    assert record is not None and record.new.width == 4
    assert record.operation_id.startswith(AUTO_PREFIX)


def test_after_a_change_of_its_own_the_model_rests_and_longer_after_a_failed_one(auto) -> None:
    auto.place(2)
    settle(auto)
    for phase, rest in (
        (Phase.DONE, auto.limits.auto_rest_s),
        (Phase.FORFEITED, auto.limits.auto_retry_s),
    ):
        record = auto.begin(4, operation_id=f"{AUTO_PREFIX}chat-e1")
        over = dataclasses.replace(record, phase=phase, generation=1, phase_at={"x": NOW + 100})
        auto.parts["transitions"][record.operation_id] = Seen(over, 1)
        auto.parts["active"].clear()
        assert started(auto, NOW + 100 + rest - 1) is None
        status = settle(auto, NOW + 100 + rest - 1)
        assert planned(status).reason == "Resting" and status.failed_generation == 0
        assert started(auto, NOW + 100 + rest) is not None


def test_a_lost_node_narrows_the_choice_and_the_heal_is_not_fought(auto) -> None:
    auto.place(4)
    settle(auto)
    auto.lose_node("n2")
    record = started(auto, NOW + 60)
    assert record is None or record.kind == "heal"
    status = settle(auto, NOW + 60)
    assert planned(status).status == "True"


def test_an_impossible_limit_is_refused_at_admission_with_the_nearest_change(auto) -> None:
    (wanted,) = parse_declarations(
        [{"kind": "Model", "name": "other", "spec": PLAIN | {"slo": {"tpot": "1us"}}}]
    )
    with pytest.raises(UnplaceableError, match="no width") as refusal:
        decide_apply(wanted, Ground(auto.snapshot, auto.facts), Caller("me", NOW, "op-9"))
    assert refusal.value.exit_code == 4 and "needs slo.tpot" in refusal.value.next_step


def test_kv_that_holds_no_request_names_the_size_that_would(auto) -> None:
    (wanted,) = parse_declarations(
        [{"kind": "Model", "name": "other", "spec": PLAIN | {"memory": {"kvPerDevice": "1KiB"}}}]
    )
    with pytest.raises(UnplaceableError) as refusal:
        decide_apply(wanted, Ground(auto.snapshot, auto.facts), Caller("me", NOW, "op-9"))
    assert refusal.value.next_step == "needs memory.kvPerDevice 3KiB"


def test_a_fleet_too_small_says_how_many_more_devices(auto) -> None:
    auto.parts["nodes"].clear()
    auto.parts["specs"].clear()
    auto.add_node("n1", hbm=2 << 20)
    big = PLAIN | {"memory": {"kvPerDevice": "2016KiB"}}
    (wanted,) = parse_declarations([{"kind": "Model", "name": "other", "spec": big}])
    with pytest.raises(UnplaceableError) as refusal:
        decide_apply(wanted, Ground(auto.snapshot, auto.facts), Caller("me", NOW, "op-9"))
    assert "more device" in refusal.value.next_step and refusal.value.reasons


def test_a_running_model_that_loses_its_limits_serves_on_and_says_so(auto) -> None:
    auto.place(4)
    declare(auto, 2, slo={"tpot": "1us"})
    status = settle(auto)
    assert (status.desired_width, planned(status).status) == (4, "False")
    assert "slo.tpot" in planned(status).message
    assert started(auto) is None


def test_scaling_by_hand_pins_the_width_and_auto_takes_it_back(auto) -> None:
    auto.place(4)
    settle(auto)
    ground = Ground(auto.snapshot, auto.facts)
    pinned = decide_scale("chat", "4", ground, Caller("ann", NOW, "op-p"))
    (spec,) = [json.loads(v) for k, v in pinned.change.puts if "specs/Model" in k]
    assert spec["spec"]["parallelism"] == {"experts": 4}
    assert spec["fields"]["parallelism.experts"]["owner"] == "ann"
    fewer = decide_scale("chat", "-1", ground, Caller("ann", NOW, "op-q"))
    assert fewer.body["to_width"] == 3  # counted from the width that was chosen
    assert pinned.body["settled"] and "plan" not in pinned.body


def test_auto_takes_back_a_width_that_was_pinned(auto) -> None:
    facts = Ground(auto.snapshot, auto.facts).facts
    auto.declare(2, generation=2)
    auto.place(2)
    settle(auto)
    back = decide_scale("chat", "auto", Ground(auto.snapshot, facts), Caller("a", NOW, "o"))
    assert (back.body["to_width"], back.body["auto"]["reason"]) == (4, "HighestRate")
    (spec,) = [json.loads(v) for k, v in back.change.puts if "specs/Model" in k]
    assert spec["spec"]["parallelism"] == {"experts": "auto"}


def test_a_dry_run_shows_every_width_that_was_weighed(auto) -> None:
    (wanted,) = parse_declarations([{"kind": "Model", "name": "other", "spec": PLAIN}])
    ground = Ground(auto.snapshot, auto.facts)
    body = decide_apply(wanted, ground, Caller("me", NOW, "op-9", dry_run=True)).body
    assert [option["width"] for option in body["auto"]["options"]] == [1, 2, 3, 4]
    assert body["plan"]["to_width"] == body["auto"]["width"]


def test_an_accelerator_without_a_sheet_is_refused_and_not_guessed(auto) -> None:
    record = auto.parts["nodes"]["n1"]
    devices = tuple(dataclasses.replace(d, kind="cuda") for d in record.devices)
    auto.parts["nodes"]["n1"] = dataclasses.replace(record, devices=devices)
    (wanted,) = parse_declarations([{"kind": "Model", "name": "other", "spec": PLAIN}])
    with pytest.raises(UnplaceableError) as refusal:
        decide_apply(wanted, Ground(auto.snapshot, auto.facts), Caller("me", NOW, "op-9"))
    assert "names no data sheet" in refusal.value.reasons[0]
    assert "sheet: h100" in refusal.value.next_step


def test_asking_for_auto_while_it_grows_names_the_operation_that_runs(auto) -> None:
    auto.place(2)
    settle(auto)
    auto.begin(4, operation_id="auto-chat-e2")
    accepted = decide_scale(
        "chat", "auto", Ground(auto.snapshot, auto.facts), Caller("ann", NOW, "op-9")
    )
    assert (accepted.body["operation_id"], accepted.body["unchanged"]) == ("auto-chat-e2", True)


def test_a_person_who_asks_for_auto_gets_the_width_that_the_answer_promised(auto) -> None:
    auto.lose_node("n2")
    declare(auto, parallelism={"experts": 2})
    auto.place(2)
    settle(auto)
    auto.add_node("n2")  # its agent started at NOW
    accepted = decide_scale(
        "chat", "auto", Ground(auto.snapshot, auto.facts), Caller("ann", NOW + 1, "op-2")
    )
    assert accepted.body["to_width"] == 4
    declare(auto, generation=2)
    record = started(auto, NOW + 1)
    assert record is not None and (record.operation_id, record.new.width) == ("op-2", 4)


def test_a_node_that_joins_while_the_answer_is_carried_out_still_has_to_stay(auto) -> None:
    auto.lose_node("n2")
    auto.place(2)
    settle(auto)
    declare(auto, generation=2)
    auto.begin(2, Phase.DONE)
    auto.parts["active"].clear()
    auto.add_node("n2")  # its agent started at NOW, and the status still says generation 1
    assert started(auto, NOW + 1) is None
