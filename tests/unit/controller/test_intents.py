"""What the API accepts, refuses and answers, decided on records alone."""

import pytest

from moectl.controller import intents
from moectl.controller.admission import Ground
from moectl.controller.model_facts import NoFacts
from moectl.controller.reconcile import reconcile
from moectl.core.errors import (
    ConflictError,
    NotFoundError,
    RefusedError,
    SpecError,
    UnplaceableError,
    UsageError,
)
from moectl.core.plan import Pace, Phase
from moectl.core.records import SpecRecord, TransitionRecord, from_json

NOW = 1000.0
MODEL = {
    "source": {"path": "/models/chat"},
    "parallelism": {"experts": 2},
    "memory": {"kvPerDevice": "1MiB"},
}


def ground(fleet) -> Ground:
    return Ground(fleet.snapshot, fleet.facts, fleet.limits)


def caller(
    operation_id: str = "op-9", dry_run: bool = False, pace: Pace = Pace.GENTLE
) -> intents.Caller:
    return intents.Caller("ann", NOW, operation_id, dry_run, pace=pace)


def declare(kind: str = "Model", name: str = "chat", spec: dict | None = None):
    document = {"kind": kind, "name": name, "spec": MODEL if spec is None else spec}
    (declared,) = intents.parse_declarations([document])
    return declared


def written(fleet, accepted) -> SpecRecord:
    return from_json(SpecRecord, dict(accepted.change.puts)[fleet.keys.spec("Model", "chat")])


def ready(fleet, width: int = 2) -> None:
    """A placed model whose status says that its generation was carried out."""
    from moectl.core.records import ModelStatus

    fleet.declare(width)
    fleet.place(width)
    (change,) = reconcile(fleet.snapshot, fleet.facts, NOW, fleet.limits).changes
    fleet.tell_status(from_json(ModelStatus, dict(change.puts)[fleet.keys.status_of("chat")]))


def test_apply_writes_generation_one_with_the_callers_operation(fleet) -> None:
    accepted = intents.decide_apply(declare(), ground(fleet), caller())
    record = written(fleet, accepted)
    assert (record.generation, record.operation_id, record.changed_by) == (1, "op-9", "ann")
    assert accepted.body["action"] == "created"
    assert accepted.body["plan"]["to_width"] == 2


def test_apply_of_the_same_words_changes_nothing(fleet) -> None:
    fleet.declare(2)
    accepted = intents.decide_apply(declare(), ground(fleet), caller())
    assert (accepted.body["action"], accepted.change) == ("unchanged", None)


def test_apply_refuses_what_a_running_worker_cannot_take(fleet) -> None:
    ready(fleet)
    changed = declare(spec=MODEL | {"memory": {"kvPerDevice": "2MiB"}})
    with pytest.raises(RefusedError, match="memory cannot change while the model runs"):
        intents.decide_apply(changed, ground(fleet), caller())


def test_engine_settings_of_a_running_model_change_but_not_the_layout_of_its_memory(fleet) -> None:
    ready(fleet)
    tuned = {"prefillChunk": 128, "maxBatchTokens": 512, "prefixCache": False, "threads": 2}
    accepted = intents.decide_apply(
        declare(spec=MODEL | {"engine": tuned}), ground(fleet), caller()
    )
    record = written(fleet, accepted)
    assert {name: record.spec["engine"][name] for name in tuned} == tuned
    assert accepted.body["action"] == "configured"
    for fixed in ({"kvBlockTokens": 8}, {"maxContext": 32}, {"dtype": "float32"}):
        with pytest.raises(RefusedError, match="engine cannot change while the model runs"):
            changed = declare(spec=MODEL | {"engine": tuned | fixed})
            intents.decide_apply(changed, ground(fleet), caller())


def test_a_model_that_does_not_fit_is_refused_with_bytes_and_device(fleet) -> None:
    big = declare(spec=MODEL | {"memory": {"kvPerDevice": "80MiB"}})
    with pytest.raises(UnplaceableError, match="n1/d0") as caught:
        intents.decide_apply(big, ground(fleet), caller())
    assert str(64 << 20) in caught.value.reasons[0]


def test_a_bad_checkpoint_is_refused_with_what_is_wrong_with_it(fleet) -> None:
    fleet.facts["/models/chat"] = NoFacts("model.safetensors: 10 bytes missing", "copy it again")
    with pytest.raises(RefusedError, match="10 bytes missing") as caught:
        intents.decide_apply(declare(), ground(fleet), caller())
    assert caught.value.next_step == "copy it again"


def test_all_documents_of_a_request_are_typed_with_every_mistake(fleet) -> None:
    with pytest.raises(SpecError) as caught:
        declare(spec={"source": {}, "parallelism": {"experts": 0}, "extra": 1})
    assert len(caught.value.mistakes) == 3
    with pytest.raises(UsageError, match=r"documents\[0\]"):
        intents.parse_declarations([{"kind": "Model"}])


def test_models_are_judged_with_the_clusters_of_the_same_request(fleet) -> None:
    for node in ("n1", "n2"):
        fleet.lose_node(node)
    with pytest.raises(UnplaceableError):
        intents.decide_apply(declare(), ground(fleet), caller())
    devices = [{"id": d, "hbm": "64MiB", "pageSize": "16KiB"} for d in ("d0", "d1")]
    cluster = declare("Cluster", "c", {"nodes": [{"name": "n1", "devices": devices}]})
    rich = intents.with_declared(ground(fleet), [cluster])
    assert intents.decide_apply(declare(), rich, caller()).body["action"] == "created"


def test_scale_changes_the_width_only_and_says_what_will_happen(fleet) -> None:
    ready(fleet)
    accepted = intents.decide_scale("chat", "+2", ground(fleet), caller())
    record = written(fleet, accepted)
    assert (record.generation, record.spec["parallelism"]["experts"]) == (2, 4)
    prediction = accepted.body["plan"]["prediction"]
    assert prediction["bytes_moved"] == prediction["bytes_lower_bound"] > 0
    assert fleet.keys.active_of("chat") in dict(accepted.change.guards)


@pytest.mark.parametrize("pace", list(Pace))
def test_the_pace_of_a_scale_goes_into_its_transition_and_its_prediction(fleet, pace) -> None:
    ready(fleet)
    accepted = intents.decide_scale("chat", "4", ground(fleet), caller(pace=pace))
    spec = written(fleet, accepted)
    assert spec.pace is pace
    fleet.parts["specs"][("Model", "chat")] = fleet.seen(spec)
    (change,) = reconcile(fleet.snapshot, fleet.facts, NOW, fleet.limits).changes
    record = from_json(TransitionRecord, dict(change.puts)[fleet.keys.transition("op-9")])
    assert (record.pace, record.is_gentle) == (pace, pace is Pace.GENTLE)
    told = accepted.body["plan"]["prediction"]["prepare_s"]
    assert record.prediction.prepare_s == told
    other = next(each for each in Pace if each is not pace)
    there = intents.decide_scale("chat", "4", ground(fleet), caller("op-8", pace=other))
    assert there.body["operation_id"] == "op-9"  # it runs already: its pace stays


def test_a_prompt_change_is_predicted_to_take_less_time(fleet) -> None:
    ready(fleet)
    seconds = {
        pace: intents.decide_scale("chat", "4", ground(fleet), caller(pace=pace)).body["plan"][
            "prediction"
        ]["prepare_s"]
        for pace in Pace
    }
    assert seconds[Pace.PROMPT] < seconds[Pace.GENTLE]


def test_a_dry_run_answers_the_same_and_writes_nothing(fleet) -> None:
    ready(fleet)
    wet = intents.decide_scale("chat", "4", ground(fleet), caller())
    dry = intents.decide_scale("chat", "4", ground(fleet), caller(dry_run=True))
    assert (dry.body, dry.change) == (wet.body, None)


@pytest.mark.parametrize(("experts", "width"), [("3", 3), ("+2", 4), ("-1", 1), (" 2 ", 2)])
def test_a_width_is_absolute_or_a_change(experts, width) -> None:
    assert intents.parse_width(experts, 2) == width


@pytest.mark.parametrize("experts", ["", "x", "2.5", "++1", "1e3", "9999999999"])
def test_other_texts_are_no_widths(experts) -> None:
    with pytest.raises(UsageError):
        intents.parse_width(experts, 2)


@pytest.mark.parametrize("experts", ["0", "-2", "5", "+3"])
def test_a_width_below_one_or_above_the_devices_is_unplaceable(fleet, experts) -> None:
    ready(fleet)
    with pytest.raises(UnplaceableError) as caught:
        intents.decide_scale("chat", experts, ground(fleet), caller())
    assert caught.value.exit_code == 4


def test_the_number_of_devices_there_are_is_told(fleet) -> None:
    ready(fleet)
    with pytest.raises(UnplaceableError, match="4 devices are alive"):
        intents.decide_scale("chat", "5", ground(fleet), caller())


def test_an_unknown_model_is_not_found(fleet) -> None:
    with pytest.raises(NotFoundError, match="'nope'"):
        intents.decide_scale("nope", "2", ground(fleet), caller())


def test_a_stale_expectation_is_refused(fleet) -> None:
    ready(fleet)
    with pytest.raises(ConflictError, match="generation is 1, not 7"):
        intents.decide_scale("chat", "4", ground(fleet), caller(), 7)


def test_another_target_is_told_which_operation_runs(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    fleet.begin(4)
    with pytest.raises(ConflictError, match="op-2"):
        intents.decide_scale("chat", "3", ground(fleet), caller())
    with pytest.raises(ConflictError, match="op-2"):
        intents.decide_apply(
            declare(spec=MODEL | {"parallelism": {"experts": 3}}), ground(fleet), caller()
        )


def test_the_same_target_or_operation_gives_the_running_one(fleet) -> None:
    fleet.declare(4, generation=2)
    fleet.place(2)
    fleet.begin(4)
    same = intents.decide_scale("chat", "4", ground(fleet), caller())
    assert (same.body["operation_id"], same.change) == ("op-2", None)
    again = intents.decide_scale("chat", "+1", ground(fleet), caller("op-2"))
    assert (again.body["to_width"], again.body["phase"], again.change) == (4, "prepare", None)


def test_an_operation_id_of_another_model_is_a_conflict(fleet) -> None:
    ready(fleet)
    fleet.begin(4)
    fleet.declare(1, name="other")
    with pytest.raises(ConflictError, match="belongs to model chat"):
        intents.decide_scale("other", "2", ground(fleet), caller("op-2"))


def test_a_model_that_waits_for_devices_can_be_made_narrower(fleet) -> None:
    from moectl.core.records import ModelStatus

    fleet.lose_node("n2")
    fleet.declare(3)
    (change,) = reconcile(fleet.snapshot, fleet.facts, NOW, fleet.limits).changes
    fleet.tell_status(from_json(ModelStatus, dict(change.puts)[fleet.keys.status_of("chat")]))
    accepted = intents.decide_scale("chat", "2", ground(fleet), caller())
    assert written(fleet, accepted).generation == 2


def test_delete_names_the_operation_that_will_follow(fleet) -> None:
    ready(fleet)
    accepted = intents.decide_delete("Model", "chat", ground(fleet), caller())
    assert accepted.body["operation_id"] == "delete-chat-e1"
    assert accepted.change.deletes == (fleet.keys.spec("Model", "chat"),)
    with pytest.raises(NotFoundError):
        intents.decide_delete("Model", "nope", ground(fleet), caller())


@pytest.mark.parametrize("phase", [Phase.COMMIT, Phase.RETIRE, Phase.DONE])
def test_a_decided_operation_cannot_be_cancelled(fleet, phase) -> None:
    ready(fleet)
    fleet.begin(4, phase)
    with pytest.raises(ConflictError, match="decision is made"):
        intents.decide_cancel("op-2", ground(fleet), caller())


def test_cancel_forfeits_a_prepare_and_is_idempotent(fleet) -> None:
    ready(fleet)
    fleet.begin(4)
    assert intents.decide_cancel("op-2", ground(fleet), caller()).body["phase"] == "forfeit"
    fleet.begin(4, Phase.FORFEITED)
    assert intents.decide_cancel("op-2", ground(fleet), caller()).change is None


@pytest.mark.parametrize("name", ["", "a/b", "a b", "-x", "x~2", "x" * 64])
def test_operation_ids_are_checked(name) -> None:
    with pytest.raises(UsageError):
        intents.Caller("ann", NOW, name)


def test_ids_of_the_controllers_own_changes_are_refused_but_such_names_are_not() -> None:
    with pytest.raises(UsageError, match="nobody asked for"):
        intents.Caller("ann", NOW, "auto-42")
    assert intents.Caller("ann", NOW, "autumn-1").operation_id == "autumn-1"
    assert declare(name="auto-chat").name == "auto-chat"
