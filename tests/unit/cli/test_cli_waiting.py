"""When does `scale --wait` end? Not before the change has begun, and not long after it is over."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from moectl.cli.fleet_view import FleetView
from moectl.cli.scaling import is_settled
from moectl.cli.tui.sample import sample_fleet
from moectl.cli.waiting import wait_scaled
from moectl.core.errors import DeadlineError, MoectlError

IDLE = dataclasses.replace(
    sample_fleet(4),
    models=(dataclasses.replace(sample_fleet(4).models[0], active=None),),
)
THERE = {"model": IDLE.models[0].name, "operation_id": "op-1", "to_width": 4, "unchanged": True}


def test_what_is_there_is_settled_and_what_has_a_plan_is_not() -> None:
    assert is_settled(IDLE, THERE)
    assert not is_settled(IDLE, THERE | {"plan": {"to_width": 4}})  # accepted, not begun yet
    assert not is_settled(IDLE, {"model": THERE["model"], "operation_id": "op-1"})


class Polled:
    """A client whose fleet is another one at every look, the last stays; its streams break off."""

    def __init__(self, *fleets: FleetView) -> None:
        self._fleets = list(fleets)

    def watch_transition(self, operation_id: str, seconds: float) -> Iterator[dict[str, Any]]:
        raise MoectlError(f"no stream of {operation_id} for {seconds} s")

    def fleet(self) -> FleetView:
        return self._fleets.pop(0) if len(self._fleets) > 1 else self._fleets[0]


def observed(fleet: FleetView, generation: int) -> FleetView:
    (model,) = fleet.models
    status = dataclasses.replace(
        model.status, observed_generation=generation, failed_generation=0, conditions=()
    )
    changed = dataclasses.replace(model, generation=9, status=status)
    return dataclasses.replace(fleet, models=(changed,), transitions=())


def test_a_width_that_came_under_another_id_ends_the_wait() -> None:
    answer = {"model": THERE["model"], "operation_id": "scale-x", "generation": 9}
    client = Polled(observed(IDLE, 8), observed(IDLE, 9))
    assert wait_scaled(client, answer, 5, lambda seen: None) is None


def test_an_intent_that_is_not_observed_yet_is_waited_for() -> None:
    answer = {"model": THERE["model"], "operation_id": "scale-x", "generation": 9}
    with pytest.raises(DeadlineError, match="scale-x"):
        wait_scaled(Polled(observed(IDLE, 8)), answer, 0.3, lambda seen: None)


def test_a_transition_with_the_id_is_what_the_wait_gives_back() -> None:
    done = sample_fleet(4, phase="done")
    answer = {"model": THERE["model"], "operation_id": done.transitions[-1].operation_id}
    told: list[str] = []
    ended = wait_scaled(Polled(done), answer, 5, lambda seen: told.append(seen.phase))
    assert (ended, told) == (done.transitions[-1], ["done"])
    lost = sample_fleet(4, phase="forfeited")
    answer = answer | {"operation_id": lost.transitions[-1].operation_id}
    with pytest.raises(MoectlError, match="forfeited"):
        wait_scaled(Polled(lost), answer, 5, lambda seen: None)
