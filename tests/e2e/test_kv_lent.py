"""A rank that leaves frees the KV that its requests can never fill, and a forfeit gives it back."""

import os
import signal
import time

from worker_fleet import create, finish, prompt, spread
from worker_site import DEADLINE_S, DEVICES

from moectl.core.codec import to_plain
from moectl.core.plan import Placement, TransitionKind
from moectl.memory.hmm.journal import read_journal
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


def test_a_rank_that_is_killed_while_it_lends_is_healed_with_all_of_its_kv(fleet, expected):
    create(fleet, 3)
    stay, leaving = DEVICES[:2], DEVICES[2]
    before = kv_pages(fleet, leaving)
    new, steps = spread(fleet.placement, stay, 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    assert kv_pages(fleet, leaving) < before
    os.kill(fleet.workers[leaving].pid, signal.SIGKILL)
    for device in stay:
        fleet.workers[device].call("peer_lost", epoch=1)
        assert fleet.workers[device].event("broken")["epoch"] == 1
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
        assert fleet.workers[device].event("forfeited")["ok"]
    old = fleet.placement
    healed = Placement("tiny", 3, old.ranks, old.owners, (1, 1, 2))
    fleet.retire(fleet.change(TransitionKind.HEAL, healed, ())[0])
    assert kv_pages(fleet, leaving) == before
    finish(fleet, [fleet.start_stream(prompt(95, 30), 60, leaving)], expected)


def test_a_rank_without_kv_to_give_takes_pages_only_when_the_leaving_one_has_lent(fleet):
    create(fleet, 4)
    taker, leaving = DEVICES[2:]
    journal = fleet.site.root / leaving.node / "hmm.sock.journal"
    before = len(read_journal(journal))
    new, steps = spread(fleet.placement, DEVICES[:3], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = [*DEVICES[:3], leaving]
    for device in members:
        if device == leaving:
            time.sleep(0.5)  # the others would have taken their pages by now
        fleet.workers[device].call("prepare", transition=to_plain(record))
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    # One memory manager wrote down what happened at both devices, in that order.
    lent, taken = ("free", leaving.device, "tiny/kv"), ("reserve", taker.device, "tiny/experts")
    told = [_told(effect) for effect in read_journal(journal)[before:]]
    assert [each for each in told if each in (lent, taken)] == [lent, taken]
    for device in members:
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
    for device in members:
        assert fleet.workers[device].event("forfeited")["ok"]


def _told(effect):
    """(verb, device, owner) of an effect on pages."""
    if effect[0] == "reserve":
        return effect[0], effect[2]["device"], effect[2]["owner"]
    return tuple(effect[:3])
