"""What the planner answers in the situations that a person can picture."""

import pytest

from moectl.core.plan import DeviceId, Infeasible, Part, StepKind, TransitionKind, TransitionPlan
from moectl.core.plan import joining_ranks as joining
from moectl.placement.devices import choose_ranks, device_key
from moectl.placement.memory_model import Demand, DeviceMemory, held_bytes, slots_that_fit
from moectl.placement.transition import TransitionInput, plan_transition

PAGE = 16 * 1024
DEMAND = Demand((16,) * 4, 147_456, 1_500_000, 32 << 20)
N1D0, N1D1, N2D0, N2D1 = (DeviceId(n, d) for n in ("n1", "n2") for d in ("d0", "d1"))
FOUR = tuple(DeviceMemory(device, 96 << 20, PAGE) for device in (N1D0, N1D1, N2D0, N2D1))


def planned(**changes: object) -> TransitionPlan:
    fields = {
        "kind": TransitionKind.CREATE,
        "model": "chat",
        "demand": DEMAND,
        "memories": FOUR,
        "old": None,
        "width": 2,
    } | changes
    plan = plan_transition(TransitionInput(**fields))  # type: ignore[arg-type]
    assert isinstance(plan, TransitionPlan), plan
    return plan


def test_a_new_model_loads_everything_once_and_starts_at_epoch_one() -> None:
    plan = planned()
    assert plan.new.ranks == (N1D0, N1D1)
    assert (plan.new.epoch, plan.new.instances) == (1, (1, 1))
    assert {step.kind for step in plan.steps} == {StepKind.LOAD}
    assert plan.prediction.bytes_moved == 64 * 147_456
    assert plan.prediction.shared_bytes_moved == 2 * 1_500_000
    assert plan.prediction.pause_ms == 0.0


def test_growing_from_two_to_four_moves_exactly_half() -> None:
    plan = planned(kind=TransitionKind.SCALE, old=planned().new, width=4)
    assert plan.prediction.bytes_moved == plan.prediction.bytes_lower_bound == 32 * 147_456
    assert joining(plan.old, plan.new) == (2, 3)
    assert plan.new.instances[:2] == (1, 1)


def test_a_width_that_does_not_divide_the_experts_stays_even() -> None:
    plan = planned(width=3)
    totals = sorted(len(list(plan.new.experts_on(rank))) for rank in range(3))
    assert totals == [21, 21, 22]


def test_growing_inside_a_node_crosses_no_node() -> None:
    one = planned(width=1)
    plan = planned(kind=TransitionKind.SCALE, old=one.new, width=2)
    assert plan.prediction.steps_cross_node == 0


def test_shrinking_drops_the_last_ranks_and_frees_all_they_held() -> None:
    old = planned(width=4).new
    plan = planned(kind=TransitionKind.SCALE, old=old, width=2)
    assert plan.new.ranks == old.ranks[:2]
    freed = [s for s in plan.steps if s.kind is StepKind.FREE and s.part is Part.EXPERT]
    assert {step.source for step in freed} == {N2D0, N2D1}
    assert len(freed) == 32


def test_a_restarted_worker_keeps_its_pages_and_moves_nothing() -> None:
    old = planned(width=4).new
    plan = planned(
        kind=TransitionKind.HEAL, old=old, width=4, restarted=frozenset({N1D1}), instance_floor=3
    )
    assert plan.new.owners == old.owners
    assert plan.new.instances == (1, 4, 1, 1)
    assert plan.new.epoch == old.epoch + 1
    assert joining(old, plan.new) == (1,)
    assert {step.kind for step in plan.steps} == {StepKind.KEEP}
    assert plan.prediction.bytes_moved == plan.prediction.shared_bytes_moved == 0


def test_a_spare_takes_the_place_of_a_lost_device_without_renumbering() -> None:
    old = planned(width=3).new
    plan = planned(kind=TransitionKind.HEAL, old=old, width=3, lost=frozenset({N1D0}))
    assert plan.new.ranks == (N2D1, N1D1, N2D0)
    assert all(step.kind is not StepKind.COPY or step.part is Part.SHARED for step in plan.steps)


def test_a_delete_ends_without_ranks_and_frees_everything() -> None:
    old = planned(width=2).new
    plan = planned(kind=TransitionKind.DELETE, old=old, width=0)
    assert (plan.new.width, plan.new.epoch) == (0, 2)
    assert sum(step.kind is StepKind.FREE for step in plan.steps) == 64 + 2


def test_numbers_of_abandoned_attempts_are_not_used_again() -> None:
    old = planned().new
    plan = planned(kind=TransitionKind.SCALE, old=old, width=4, epoch_floor=5, instance_floor=7)
    assert plan.new.epoch == 6
    assert plan.new.instances == (1, 1, 8, 8)


@pytest.mark.parametrize("width", [0, -1, 5])
def test_an_impossible_width_is_answered_with_the_number_of_devices(width: int) -> None:
    answer = plan_transition(
        TransitionInput(TransitionKind.CREATE, "chat", DEMAND, FOUR, None, width)
    )
    assert isinstance(answer, Infeasible)
    assert answer.nearest in ("1 device", "4 devices")


def test_a_model_that_does_not_fit_names_device_need_and_nearest_width() -> None:
    big = Demand((16,) * 4, 1_474_560, 1_500_000, 32 << 20)
    answer = plan_transition(TransitionInput(TransitionKind.CREATE, "chat", big, FOUR, None, 1))
    assert isinstance(answer, Infeasible)
    assert "n1/d0" in answer.reasons[0] and str(96 << 20) in answer.reasons[0]
    assert answer.nearest == "2 devices"


def test_bytes_of_other_models_are_not_available() -> None:
    taken = tuple(DeviceMemory(m.device, m.hbm_bytes, PAGE, taken_bytes=61 << 20) for m in FOUR)
    answer = plan_transition(TransitionInput(TransitionKind.CREATE, "b", DEMAND, taken, None, 4))
    assert isinstance(answer, Infeasible)
    assert answer.nearest == ""


def test_slots_that_fit_is_the_inverse_of_held_bytes() -> None:
    memory = FOUR[0]
    slots = slots_that_fit(DEMAND, memory)
    assert held_bytes(DEMAND, memory, slots) <= memory.hbm_bytes
    assert held_bytes(DEMAND, memory, slots + 1) > memory.hbm_bytes


def test_devices_are_ordered_as_a_person_counts() -> None:
    names = ["n10/d0", "n2/d10", "n2/d9", "n1/d0"]
    ordered = sorted((DeviceId.parse(name) for name in names), key=device_key)
    assert [str(device) for device in ordered] == ["n1/d0", "n2/d9", "n2/d10", "n10/d0"]


def test_growing_fills_a_node_in_use_before_it_opens_another() -> None:
    assert choose_ranks((N2D0,), (N1D0, N1D1, N2D0, N2D1), 3) == (N2D0, N2D1, N1D0)


def test_a_gap_closes_when_no_spare_is_left() -> None:
    assert choose_ranks((N1D0, N1D1, N2D0), (N1D0, N2D0), 2) == (N1D0, N2D0)


def test_only_a_heal_adds_its_preparation_to_the_pause() -> None:
    old = planned(width=4).new
    scale = planned(kind=TransitionKind.SCALE, old=old, width=3).prediction
    heal = planned(
        kind=TransitionKind.HEAL, old=old, width=4, restarted=frozenset({N1D1})
    ).prediction
    assert scale.pause_ms < 1000 * scale.prepare_s
    assert heal.pause_ms > 1000 * heal.prepare_s
