"""Requests of ranks that leave go on elsewhere with their KV: nothing is computed a second time.

Real workers on two nodes; the test is their agent and their gateway.
"""

import os
import signal
import time
from dataclasses import replace

import pytest
from worker_fleet import create, finish, prompt, spread
from worker_site import DEADLINE_S, DEVICES

from moectl.core.plan import TransitionKind

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 11, "frequency_penalty": 0.3}
GREEDY = {"temperature": 0.0}
#: Tokens of a request that outlives several changes of width, however fast a free machine decodes.
LONG = 400


def decoding(fleet, device, count, length=40, tokens=160):
    """`count` requests on a device, each with some tokens already."""
    streams = [
        fleet.start_stream(
            prompt(1000 + 10 * DEVICES.index(device) + n, length + n),
            tokens,
            device,
            SAMPLED | {"seed": n} if n % 2 else GREEDY,
        )
        for n in range(count)
    ]
    until = time.monotonic() + DEADLINE_S
    while not all(len(stream.tokens) > 3 for stream in streams):
        assert time.monotonic() < until
        time.sleep(0.01)
    return streams


def stats(fleet, device):
    return fleet.workers[device].call("stats")["stats"]


def kv_is_free(fleet, devices):
    """Whether no request holds a block on these devices (an unclaimed one goes after a while)."""
    until = time.monotonic() + DEADLINE_S
    while any(stats(fleet, device)["kv_blocks_used"] for device in devices):
        assert time.monotonic() < until, [stats(fleet, device) for device in devices]
        time.sleep(0.1)


def leave(fleet, ranks):
    """Scale down to `ranks`; returns the figures of the flip, added up."""
    new, steps = spread(fleet.placement, ranks, fleet.placement.epoch + 1)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    assert all(fleet.workers[device].event("prepared")["ok"] for device in members)
    fleet.commit(record, members)
    figures = {}
    for device in members:
        for name, value in fleet.flips[device].items():
            figures[name] = figures.get(name, 0.0) + value
    return record, figures


@pytest.mark.parametrize("stay", [(0, 2), (0, 1)], ids=["inside a node", "between nodes"])
def test_a_scale_down_moves_requests_with_their_kv(fleet, expected, stay):
    create(fleet, 4)
    staying = tuple(DEVICES[at] for at in stay)
    leaving = [device for device in DEVICES if device not in staying]
    kept = [stream for device in staying for stream in decoding(fleet, device, 1)]
    moved = [stream for device in leaving for stream in decoding(fleet, device, 3)]
    before = {device: stats(fleet, device) for device in staying}
    record, figures = leave(fleet, staying)
    fleet.retire(record)
    finish(fleet, kept + moved, expected)
    assert (figures["requests_moved"], figures["requests_replayed"]) == (6, 0)
    assert figures["kv_moved_bytes"] >= 6 * 40 * 512  # bytes of 40 tokens
    assert [(s.moves, s.continued, s.replays) for s in moved] == [(1, 1, 0)] * 6
    assert [(s.moves, s.replays) for s in kept] == [(0, 0)] * 2
    # Every row that the staying ranks computed since gave a token: no prompt was read again.
    after = {device: stats(fleet, device) for device in staying}
    for device in staying:
        rows, tokens = (after[device][k] - before[device][k] for k in ("rows", "tokens_out"))
        assert rows == tokens > 0
    kv_is_free(fleet, staying)


def test_prompts_in_the_middle_and_requests_in_the_queue_move_too(fleet, expected):
    """More requests than lanes, with long prompts: some decode, some are read, some wait."""
    create(fleet, 2)
    crowd = [fleet.start_stream(prompt(2000 + n, 120), 40, DEVICES[1]) for n in range(24)]
    while not any(stream.tokens for stream in crowd):
        time.sleep(0.005)
    record, figures = leave(fleet, DEVICES[:1])
    fleet.retire(record)
    finish(fleet, crowd, expected)
    assert figures["requests_moved"] + figures["requests_replayed"] > 0
    assert sum(stream.continued for stream in crowd) == figures["requests_moved"] > 0
    kv_is_free(fleet, DEVICES[:1])


def test_what_finds_no_room_is_replayed_and_counted(fleet, expected):
    create(fleet, 2)
    kept = decoding(
        fleet, DEVICES[0], 5, length=100, tokens=140
    )  # 5 x 30 of 128 blocks, in the end
    moved = decoding(fleet, DEVICES[1], 4, length=120, tokens=120)
    record, figures = leave(fleet, DEVICES[:1])
    fleet.retire(record)
    finish(fleet, kept + moved, expected)
    assert figures["requests_moved"] + figures["requests_replayed"] == 4
    assert figures["requests_replayed"] == sum(stream.replays for stream in moved) > 0
    kv_is_free(fleet, DEVICES[:1])


def test_a_forfeit_frees_what_was_copied_ahead(fleet, expected):
    create(fleet, 2)
    streams = decoding(fleet, DEVICES[1], 3, tokens=200)
    new, steps = spread(fleet.placement, DEVICES[:1], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    assert all(fleet.workers[device].event("prepared")["ok"] for device in members)
    assert stats(fleet, DEVICES[0])["kv_blocks_used"] >= 3 * 5
    for device in members:
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
        assert fleet.workers[device].event("forfeited")["ok"]
    kv_is_free(fleet, DEVICES[:1])
    finish(fleet, streams, expected)
    assert [(stream.moves, stream.replays) for stream in streams] == [(0, 0)] * 3


def test_a_receiver_killed_in_prepare_costs_no_request(fleet, expected):
    """The old epoch broke with it; its own requests are replayed, the others go on in the next."""
    create(fleet, 3)
    streams = [s for device in DEVICES[:3] for s in decoding(fleet, device, 2)]
    new, steps = spread(fleet.placement, DEVICES[:2], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    os.kill(fleet.workers[DEVICES[0]].pid, signal.SIGKILL)
    for device in (DEVICES[1], DEVICES[2]):
        fleet.workers[device].call("peer_lost", epoch=1)
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
        assert fleet.workers[device].event("forfeited")["ok"]
    healed = replace(fleet.placement, epoch=3, instances=(2, 1, 1))
    fleet.retire(fleet.change(TransitionKind.HEAL, healed, ())[0])
    finish(fleet, streams, expected)
    assert [stream.replays for stream in streams] == [1, 1, 0, 0, 0, 0]
    kv_is_free(fleet, DEVICES[:3])


def test_a_leaver_killed_at_the_flip_costs_no_request_and_no_block(fleet, expected):
    """Whatever had gone over and is not claimed ends by itself: its readers replay."""
    create(fleet, 3)
    kept = [s for device in DEVICES[:2] for s in decoding(fleet, device, 1)]
    gone = decoding(fleet, DEVICES[2], 4)
    new, steps = spread(fleet.placement, DEVICES[:2], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    for device in fleet.prepare(record):
        assert fleet.workers[device].event("prepared")["ok"]
    for device in new.ranks:
        fleet.workers[device].call("commit", operation_id=record.operation_id)
    leaver = fleet.workers.pop(DEVICES[2])
    leaver.call("commit", operation_id=record.operation_id)
    os.kill(leaver.pid, signal.SIGKILL)
    for device in new.ranks:
        fleet.workers[device].call("peer_lost", epoch=1)
        assert fleet.workers[device].event("committed")["ok"]
    fleet.placement = new
    fleet.retire(record)
    finish(fleet, kept + gone, expected)
    assert [stream.replays for stream in kept] == [0, 0]
    assert all(stream.moves + stream.replays >= 1 for stream in gone)
    kv_is_free(fleet, DEVICES[:2])


def test_a_drained_node_hands_its_requests_to_ranks_that_have_just_joined(fleet, expected):
    """Nobody stays: the receivers' engines exist since this very transition."""
    create(fleet, 2)
    streams = [s for device in DEVICES[:2] for s in decoding(fleet, device, 2, tokens=LONG)]
    record, figures = leave(fleet, DEVICES[2:])
    fleet.retire(record)
    finish(fleet, streams, expected)
    assert (figures["requests_moved"], figures["requests_replayed"]) == (4, 0)
    assert [(s.moves, s.continued, s.replays) for s in streams] == [(1, 1, 0)] * 4
    rows = [stats(fleet, device)["rows"] for device in DEVICES[2:]]
    assert sum(rows) == sum(stats(fleet, device)["tokens_out"] for device in DEVICES[2:])
    kv_is_free(fleet, DEVICES[2:])


def test_a_request_may_move_again_and_again(fleet, expected):
    create(fleet, 2)
    streams = decoding(fleet, DEVICES[0], 3, tokens=250)  # three fit a rank
    for ranks in (DEVICES[2:3], DEVICES[:2], DEVICES[2:]):
        record, figures = leave(fleet, ranks)
        fleet.retire(record)
        assert figures["requests_replayed"] == 0
        while fleet.homeless.qsize():
            fleet.place_homeless()
    finish(fleet, streams, expected)
    assert all(stream.moves >= 1 and not stream.replays for stream in streams)
    kv_is_free(fleet, DEVICES[2:])
