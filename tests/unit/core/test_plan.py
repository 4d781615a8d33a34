"""Placements are checked, and who joins and who leaves follows from two of them."""

from dataclasses import replace

import pytest

from moectl.core.plan import (
    DeviceId,
    Part,
    Placement,
    Step,
    StepKind,
    check_placement,
    joining_ranks,
    leaving_devices,
)

D0, D1, D2 = DeviceId("n1", "d0"), DeviceId("n1", "d1"), DeviceId("n2", "d0")
TWO = Placement("chat", 3, (D0, D1), (((0,), (1,)), ((1,), (0,))), (0, 0))


def test_a_placement_knows_its_width_and_what_each_rank_holds() -> None:
    assert (TWO.width, TWO.layer_count) == (2, 2)
    assert list(TWO.experts_on(0)) == [(0, 0), (1, 1)]
    assert (TWO.rank_of(D1), TWO.rank_of(D2)) == (1, None)


def test_at_creation_every_rank_joins_and_nobody_leaves() -> None:
    assert joining_ranks(None, TWO) == (0, 1)
    assert leaving_devices(None, TWO) == ()


def test_a_wider_placement_is_joined_by_its_new_devices_only() -> None:
    wider = replace(TWO, epoch=4, ranks=(D0, D1, D2), instances=(0, 0, 0))
    assert joining_ranks(TWO, wider) == (2,)
    assert leaving_devices(TWO, wider) == ()
    assert leaving_devices(wider, TWO) == (D2,)


def test_a_healed_rank_joins_anew_on_the_same_device() -> None:
    healed = replace(TWO, epoch=4, instances=(0, 1))
    assert joining_ranks(TWO, healed) == (1,)
    assert leaving_devices(TWO, healed) == ()


def test_a_step_crosses_nodes_when_its_bytes_do() -> None:
    inside = Step(StepKind.COPY, Part.EXPERT, D1, 10, 0, 0, source=D0)
    assert not inside.crosses_node
    assert replace(inside, target=D2).crosses_node
    assert not replace(inside, kind=StepKind.LOAD, source=None).crosses_node


def test_a_good_placement_passes() -> None:
    check_placement(TWO, [2, 2])
    check_placement(replace(TWO, owners=(((0, 1), (1,)),)), [2])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ranks": (D0, D0)}, "distinct devices"),
        ({"instances": (0,)}, "one instance number each"),
        ({"owners": (((0,), (1,)),)}, "1 layers placed, 2 expected"),
        ({"owners": (((0,),), ((1,), (0,)))}, "layer 0: 1 experts placed, 2 expected"),
        ({"owners": (((0,), ()), ((1,), (0,)))}, "layer 0 expert 1"),
        ({"owners": (((0,), (1,)), ((1, 0), (0,)))}, "not ascending"),
        ({"owners": (((0,), (1, 1)), ((1,), (0,)))}, "not ascending"),
        ({"owners": (((0,), (2,)), ((1,), (0,)))}, "out of range"),
        ({"owners": (((-1,), (1,)), ((1,), (0,)))}, "out of range"),
    ],
)
def test_a_placement_that_breaks_a_rule_is_refused_with_the_place(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_placement(replace(TWO, **changes), [2, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["n1", "n1/", "/d0", "", "n1/d0/x"])
def test_what_is_not_a_device_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected NODE/DEVICE"):
        DeviceId.parse(text)
