"""What a change need not wait for: an agent's word to a rank that joins, doors that nobody uses."""

import time

from worker_fleet import create, finish, prompt, spread
from worker_site import DEADLINE_S, DEVICES

from moectl.core.plan import TransitionKind
from moectl.core.records import to_plain


def test_a_rank_that_joins_prepares_for_what_its_orders_name(fleet, expected):
    create(fleet, 2)
    new, steps = spread(fleet.placement, DEVICES[:3], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    for device in DEVICES[:2]:
        fleet.workers[device].call("prepare", transition=to_plain(record))
    fleet.spawn(DEVICES[2], 1, record)
    joining = fleet.workers[DEVICES[2]]
    until = time.monotonic() + DEADLINE_S
    while joining.call("status")["prepared_operation"] != record.operation_id:
        assert time.monotonic() < until
        time.sleep(0.01)
    # Who asks for it later is told how it ended.
    joining.call("prepare", transition=to_plain(record))
    assert all(fleet.workers[device].event("prepared")["ok"] for device in new.ranks)
    fleet.commit(record, new.ranks)
    fleet.retire(record)
    finish(fleet, [fleet.start_stream(prompt(81, 20), 20, DEVICES[2])], expected)


def test_a_rank_that_leaves_without_requests_waits_for_no_receiver(fleet, expected):
    create(fleet, 2)
    streams = [fleet.start_stream(prompt(82, 20), 60, DEVICES[0])]
    new, steps = spread(fleet.placement, DEVICES[:1], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    leaving, staying = fleet.workers[DEVICES[1]], fleet.workers[DEVICES[0]]
    leaving.call("prepare", transition=to_plain(record))
    assert leaving.event("prepared")["ok"]  # nobody else has been told, so no door is open
    staying.call("prepare", transition=to_plain(record))
    assert staying.event("prepared")["ok"]
    fleet.commit(record, [DEVICES[0], DEVICES[1]])
    fleet.retire(record)
    finish(fleet, streams, expected)
    assert [stream.replays for stream in streams] == [0]
