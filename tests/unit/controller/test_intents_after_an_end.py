"""What may be asked for in the moment after a transition ended, before the status says so?

The status may be written a tick after the transaction that ended a transition. Whoever saw that end
may ask for the next thing at once: the journal answers them, not the status.
"""

import dataclasses

import pytest

from moectl.controller import intents
from moectl.controller.admission import Ground
from moectl.controller.decision import Cause
from moectl.controller.reconcile import reconcile
from moectl.core.errors import ConflictError
from moectl.core.plan import Phase
from moectl.core.records import ModelStatus, SpecRecord, from_json

NOW = 1000.0
CALLER = intents.Caller("ann", NOW, "op-9")


def ground(fleet) -> Ground:
    return Ground(fleet.snapshot, fleet.facts, fleet.limits)


def generation_of(fleet, accepted) -> int:
    key = fleet.keys.spec("Model", "chat")
    return from_json(SpecRecord, dict(accepted.change.puts)[key]).generation


def declaration(width: int) -> intents.Declaration:
    spec = {
        "source": {"path": "/models/chat"},
        "parallelism": {"experts": width},
        "memory": {"kvPerDevice": "1MiB"},
    }
    (declared,) = intents.parse_declarations([{"kind": "Model", "name": "chat", "spec": spec}])
    return declared


def end(fleet, phase: Phase, reason: str = "") -> None:
    """`chat` went from 2 to 4 as generation 2 and ended just now; its status is from before."""
    fleet.declare(2)
    fleet.place(2)
    fleet.tell_status(ModelStatus("chat", 1, 2, 2, 2, 2, 2, 1, ()))
    fleet.declare(4, generation=2)
    record = dataclasses.replace(fleet.begin(4, phase), reason=reason)
    fleet.parts["transitions"]["op-2"] = fleet.seen(record)
    del fleet.parts["active"]["chat"]
    if phase is Phase.DONE:
        fleet.place(4)


@pytest.mark.parametrize("width", ["2", "3", "-1"])
def test_the_next_width_is_accepted_at_the_instant_of_done(fleet, width) -> None:
    end(fleet, Phase.DONE)
    accepted = intents.decide_scale("chat", width, ground(fleet), CALLER)
    assert generation_of(fleet, accepted) == 3


def test_the_next_apply_is_accepted_at_the_instant_of_done(fleet) -> None:
    end(fleet, Phase.DONE)
    accepted = intents.decide_apply(declaration(3), ground(fleet), CALLER)
    assert generation_of(fleet, accepted) == 3


def test_the_width_that_was_just_reached_is_unchanged(fleet) -> None:
    end(fleet, Phase.DONE)
    accepted = intents.decide_scale("chat", "4", ground(fleet), CALLER)
    assert (accepted.body["unchanged"], accepted.change) == (True, None)


def test_another_width_is_accepted_at_the_instant_of_forfeited(fleet) -> None:
    end(fleet, Phase.FORFEITED, f"{Cause.PREPARE_FAILED}: n1: no room")
    accepted = intents.decide_scale("chat", "3", ground(fleet), CALLER)
    assert generation_of(fleet, accepted) == 3


def test_the_same_words_are_a_new_try_at_the_instant_of_forfeited(fleet) -> None:
    end(fleet, Phase.FORFEITED, f"{Cause.PREPARE_FAILED}: n1: no room")
    accepted = intents.decide_apply(declaration(4), ground(fleet), CALLER)
    assert (accepted.body["action"], generation_of(fleet, accepted)) == ("configured", 3)


def test_what_will_be_tried_again_is_not_over(fleet) -> None:
    end(fleet, Phase.FORFEITED, f"{Cause.WORKER_LOST}: chat on n1/d0")
    with pytest.raises(ConflictError, match="op-2"):
        intents.decide_scale("chat", "3", ground(fleet), CALLER)
    (change,) = reconcile(fleet.snapshot, fleet.facts, NOW, fleet.limits).changes
    assert change.reason == "Scaling"  # it is, indeed


def test_what_was_accepted_and_not_begun_is_not_over(fleet) -> None:
    end(fleet, Phase.DONE)
    fleet.declare(2, generation=3)
    with pytest.raises(ConflictError, match="op-3"):
        intents.decide_scale("chat", "3", ground(fleet), CALLER)
