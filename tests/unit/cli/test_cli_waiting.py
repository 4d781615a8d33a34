"""When does `scale --wait` end? Not before the change has begun, and not long after it is over."""

import dataclasses

from moectl.cli.scaling import is_settled
from moectl.cli.tui.sample import sample_fleet

IDLE = dataclasses.replace(
    sample_fleet(4),
    models=(dataclasses.replace(sample_fleet(4).models[0], active=None),),
)
THERE = {"model": IDLE.models[0].name, "operation_id": "op-1", "to_width": 4, "unchanged": True}


def test_what_is_there_is_settled_and_what_has_a_plan_is_not() -> None:
    assert is_settled(IDLE, THERE)
    assert not is_settled(IDLE, THERE | {"plan": {"to_width": 4}})  # accepted, not begun yet
    assert not is_settled(IDLE, {"model": THERE["model"], "operation_id": "op-1"})
