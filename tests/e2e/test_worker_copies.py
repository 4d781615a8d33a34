"""Epochs that change no rank: copies of experts come and go, engine settings change; all live."""

import time
from dataclasses import replace

from worker_fleet import (
    ENGINE,
    EXPERT_BYTES,
    EXPERTS,
    LAYERS,
    PAGES_PER_EXPERT,
    SPEC,
    create,
    expert_pages,
    finish,
    prompt,
    with_copies,
)
from worker_site import DEVICES

from moectl.core.plan import TransitionKind
from moectl.core.records import to_plain


def test_streams_keep_their_tokens_while_copies_come_serve_and_go(fleet, expected):
    """1 copy of each -> 2 of every third -> 2 of every expert -> 1, on ranks of two nodes."""
    create(fleet, 3)
    base = fleet.placement
    fleet.is_talking = True
    for n in range(3):
        fleet.start_stream(prompt(140 + n, 6 + 7 * n), 60, DEVICES[n])
    for epoch, every in ((2, 3), (3, 1), (4, EXPERTS * LAYERS)):
        new, steps = with_copies(fleet.placement, base, epoch, every)
        if every > EXPERTS:
            new, steps = replace(base, epoch=epoch), ()
        record, figures = fleet.change(TransitionKind.SCALE, new, steps)
        fleet.retire(record)
        moved = sum(int(each["bytes_copied"]) for each in figures.values())
        assert moved == len(steps) * EXPERT_BYTES
        held = expert_pages(fleet)
        for device in DEVICES[:3]:
            count = len(list(new.experts_on(new.rank_of(device))))
            assert held[device] == count * PAGES_PER_EXPERT
        for n in range(3):
            fleet.start_stream(prompt(150 + 10 * epoch + n, 20), 20, DEVICES[n])
        time.sleep(0.3)  # rows flow while copies serve
    fleet.is_talking = False
    finish(fleet, list(fleet.streams.values()), expected)
    assert not any(stream.replays for stream in fleet.streams.values())


def test_workers_take_other_engine_settings_at_a_flip_while_they_serve(fleet, expected):
    create(fleet, 2)
    streams = [fleet.start_stream(prompt(170 + n, 9), 60, DEVICES[n % 2]) for n in range(6)]
    while not all(stream.tokens for stream in streams):
        time.sleep(0.01)
    engine = {**ENGINE, "maxRequests": 1, "maxBatchTokens": 64, "prefillChunk": 40, "threads": 2}
    new = replace(fleet.placement, epoch=2)
    record = replace(
        fleet.record(TransitionKind.SCALE, new, ()), model_spec={**SPEC, "engine": engine}
    )
    members = fleet.prepare(record)
    figures = [fleet.workers[device].event("prepared") for device in members]
    assert all(each["ok"] and each["figures"]["bytes_copied"] == 0 for each in figures), figures
    fleet.commit(record, members)
    fleet.retire(record)
    while any(not stream.ended.is_set() for stream in streams):
        for device in DEVICES[:2]:
            assert fleet.workers[device].call("stats")["stats"]["running"] <= 1
        time.sleep(0.01)
    finish(fleet, streams, expected)
    assert not any(stream.replays for stream in streams)
    # What lays memory out cannot change: the preparation says so, and the epoch serves on.
    other = {**SPEC, "engine": {**engine, "kvBlockTokens": 16}}
    record = replace(
        fleet.record(TransitionKind.SCALE, replace(new, epoch=3), ()), model_spec=other
    )
    reply = fleet.workers[DEVICES[0]].ask("prepare", transition=to_plain(record))
    assert not reply["ok"] and "block_tokens" in reply["error"]
    finish(fleet, [fleet.start_stream(prompt(180, 20), 20, DEVICES[1])], expected)
