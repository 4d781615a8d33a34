"""Requests of ranks that leave go on elsewhere with their KV: nothing is computed a second time.

Real workers on two nodes; the test is their agent and their gateway.
"""

import time

import pytest
from worker_fleet import create, finish, prompt, spread
from worker_site import DEADLINE_S, DEVICES

from moectl.core.plan import TransitionKind

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 11, "frequency_penalty": 0.3}
GREEDY = {"temperature": 0.0}


def decoding(fleet, device, count, length=40, tokens=130):
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
