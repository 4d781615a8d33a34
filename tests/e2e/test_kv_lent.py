"""A rank that leaves frees the KV that its requests can never fill, and a forfeit gives it back."""

import time

from worker_fleet import create, finish, prompt, spread
from worker_site import DEADLINE_S, DEVICES

from moectl.core.plan import TransitionKind
from moectl.memory.layout import KvLayout, kv_name


def kv_pages(fleet, device):
    with fleet.hmm(device.node) as hmm:
        return len(KvLayout.from_json(hmm.get_layout(kv_name("tiny", device.device))).pages)


def test_a_rank_that_leaves_lends_the_kv_it_cannot_fill_and_a_forfeit_gives_it_back(
    fleet, expected
):
    create(fleet, 3)
    leaving, before = DEVICES[2], kv_pages(fleet, DEVICES[2])
    stream = fleet.start_stream(prompt(97, 20), 120, leaving)
    until = time.monotonic() + DEADLINE_S
    while not stream.tokens:
        assert time.monotonic() < until
        time.sleep(0.01)
    new, steps = spread(fleet.placement, DEVICES[:2], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    # What is left holds the one request to its end: 140 tokens in blocks of 8.
    assert kv_pages(fleet, leaving) < before
    assert kv_pages(fleet, DEVICES[0]) == before
    late = fleet.start_stream(prompt(98, 10), 10, leaving)
    assert late.moved_off.wait(DEADLINE_S)  # no room is kept for those who come now
    for device in members:
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
    for device in members:
        assert fleet.workers[device].event("forfeited")["ok"]
    assert kv_pages(fleet, leaving) == before
    fleet.place_homeless()
    again = fleet.start_stream(prompt(99, 10), 10, leaving)
    finish(fleet, [stream, late, again], expected)
    assert (stream.replays, again.replays) == (0, 0)
