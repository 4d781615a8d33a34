"""An intent that is decided again, by a client or after a lost answer, stays what it was."""

import pytest

from moectl.controller import intents
from moectl.controller.admission import Ground
from moectl.core.plan import Phase
from moectl.core.records import ModelStatus, SpecRecord, from_json

NOW = 1000.0


def ground(fleet) -> Ground:
    return Ground(fleet.snapshot, fleet.facts, fleet.limits)


def caller(operation_id: str = "op-9") -> intents.Caller:
    return intents.Caller("ann", NOW, operation_id)


def ready(fleet, width: int) -> None:
    """`chat` serves, and its status says that generation 1 was carried out."""
    fleet.declare(width)
    fleet.place(width)
    fleet.tell_status(ModelStatus("chat", 1, width, width, width, width, width, 1, ()))


def land(fleet, accepted) -> None:
    """The write of an intent happened, whatever its caller was told."""
    key = fleet.keys.spec("Model", "chat")
    record = from_json(SpecRecord, dict(accepted.change.puts)[key])
    fleet.parts["specs"][("Model", "chat")] = fleet.seen(record)


@pytest.mark.parametrize(("before", "change"), [(2, "-1"), (2, "+2"), (3, "4")])
def test_a_scale_that_landed_answers_the_same_when_it_is_decided_again(
    fleet, before, change
) -> None:
    ready(fleet, before)
    first = intents.decide_scale("chat", change, ground(fleet), caller(), 1)
    land(fleet, first)
    again = intents.decide_scale("chat", change, ground(fleet), caller(), 1)
    assert again.change is None
    assert again.body == first.body | {"unchanged": True}  # with its plan: there is work ahead
    fleet.begin(first.body["to_width"], Phase.PREPARE, "op-9")
    begun = intents.decide_scale("chat", change, ground(fleet), caller(), 1)
    assert (begun.body["to_width"], begun.change) == (first.body["to_width"], None)
    assert begun.body["plan"] == first.body["plan"]


def test_a_repeat_that_waits_for_devices_is_still_known(fleet) -> None:
    ready(fleet, 2)
    land(fleet, intents.decide_scale("chat", "4", ground(fleet), caller()))
    fleet.lose_node("n2")
    again = intents.decide_scale("chat", "4", ground(fleet), caller())
    assert (again.body["operation_id"], again.body["to_width"]) == ("op-9", 4)
