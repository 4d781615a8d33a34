"""Sweeping: what belongs to nobody goes, what is missing is reported, a hurry is avoided."""

from moectl.agents.sweep import Lasting, Leftover, Missing, Scene, Stale, Stray, sweep
from moectl.core.plan import DeviceId, Placement

D0, D1, D2 = (DeviceId("n1", name) for name in ("d0", "d1", "d2"))
CHAT = Placement("chat", 4, (D0, D1, DeviceId("n2", "d0")), (((0,),),), (1, 2, 1))


def scene(**fields):
    usual = {
        "node": "n1",
        "placements": {"chat": CHAT},
        "busy": frozenset(),
        "alive": {("chat", D0): 1, ("chat", D1): 2},
        "known": frozenset(),
        "held": frozenset({("chat", D0), ("chat", D1)}),
        "prepared": {},
    }
    return Scene(**(usual | fields))


def test_a_node_in_order_has_no_findings():
    assert sweep(scene()) == ()


def test_workers_and_pages_of_nobody_are_found():
    alive = {("chat", D0): 1, ("chat", D1): 2, ("chat", D2): 1, ("old", D0): 1}
    found = sweep(scene(alive=alive, held=frozenset({("old", D1), ("chat", D2)})))
    assert found == (Stray("chat", D2, 1), Stray("old", D0, 1), Leftover("old", D1))


def test_a_worker_of_an_older_instance_is_a_stray_and_its_rank_is_missing():
    found = sweep(scene(alive={("chat", D0): 1, ("chat", D1): 1}))
    assert found == (Stray("chat", D1, 1), Missing("chat", D1, 2, 1, 4))


def test_a_death_that_is_known_is_not_reported_twice():
    dead = scene(alive={("chat", D0): 1})
    assert sweep(dead) == (Missing("chat", D1, 2, 1, 4),)
    assert sweep(scene(alive={("chat", D0): 1}, known=frozenset({("chat", D1, 2)}))) == ()


def test_pages_of_a_dead_rank_stay_for_its_successor():
    assert sweep(scene(alive={("chat", D0): 1}, known=frozenset({("chat", D1, 2)}))) == ()


def test_a_model_in_transition_is_left_alone():
    alive = {("chat", D2): 9}
    busy = scene(alive=alive, busy=frozenset({"chat"}), prepared={("chat", D2): "op"})
    assert sweep(busy) == ()


def test_a_preparation_of_an_operation_that_is_over_is_stale():
    assert sweep(scene(prepared={("chat", D0): "op"})) == (Stale("chat", D0, "op"),)


def test_a_finding_counts_when_it_has_lasted():
    lasting = Lasting(3.0)
    stray, other = Stray("chat", D2, 1), Stray("chat", D1, 1)
    assert lasting.filter((stray,), 10.0) == ()
    assert lasting.filter((stray, other), 12.0) == ()
    assert lasting.filter((stray, other), 13.0) == (stray,)
    assert lasting.filter((), 14.0) == ()
    assert lasting.filter((stray,), 15.0) == ()  # it was gone in between
