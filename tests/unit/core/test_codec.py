"""Lists of records that were read or written before are found again, and nothing else is."""

import json
from dataclasses import replace

import pytest

from moectl.core.codec import KEPT_ITEMS_MIN, LISTS_KEPT, from_json, from_plain, to_json, to_plain
from moectl.core.errors import ProtocolError
from moectl.core.plan import (
    DeviceId,
    Part,
    Phase,
    Placement,
    Prediction,
    Step,
    StepKind,
    TransitionKind,
)
from moectl.core.records import TransitionRecord

D0 = DeviceId("n1", "d0")
OWNERS = (((0,), (0,)),) * KEPT_ITEMS_MIN
NEW = Placement(model="chat", epoch=2, ranks=(D0,), owners=OWNERS, instances=(1,))


def record(count, size=7):
    steps = tuple(Step(StepKind.COPY, Part.EXPERT, D0, size, 0, expert) for expert in range(count))
    return TransitionRecord(
        operation_id="op", model="chat", kind=TransitionKind.SCALE, phase=Phase.PREPARE,
        generation=1, old=None, new=NEW, steps=steps,
        prediction=Prediction(0, 0, 0, {}, 0.0, 0.0, 0), accepted_at=1.0, phase_at={},
        deadline_at=2.0, store_address="s", model_spec={},
    )  # fmt: skip


def test_steps_that_were_read_before_are_the_same_object_whatever_else_changed():
    first = record(KEPT_ITEMS_MIN)
    one = from_json(TransitionRecord, to_json(first))
    two = from_json(TransitionRecord, to_json(replace(first, phase=Phase.COMMIT)))
    assert one == first and two.phase is Phase.COMMIT
    assert one.steps is two.steps and one.new.owners is two.new.owners
    assert to_plain(one)["steps"] is to_plain(two)["steps"]


@pytest.mark.parametrize("count", [KEPT_ITEMS_MIN - 1, KEPT_ITEMS_MIN])
def test_other_steps_are_other_steps(count):
    for size in range(2 * LISTS_KEPT):
        told = record(count, size)
        assert from_json(TransitionRecord, to_json(told)) == told
        assert json.loads(to_json(told))["steps"][0]["bytes"] == size


def test_a_list_that_equals_a_kept_one_but_for_its_types_is_refused():
    plain = to_plain(record(KEPT_ITEMS_MIN, 1))
    assert from_plain(TransitionRecord, plain).steps[0].bytes == 1
    wrong = [{**step, "bytes": True} for step in plain["steps"]]
    assert wrong == plain["steps"]
    with pytest.raises(ProtocolError, match=r"steps\[0\]\.bytes"):
        from_plain(TransitionRecord, plain | {"steps": wrong})
