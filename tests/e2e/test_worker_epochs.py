"""Real workers go from epoch to epoch while they serve: any width, two nodes, and a kill -9.

Two HMMs stand for two nodes, one fork server makes all workers, and the test is both agent and
gateway: it speaks the control and the data protocol itself. No etcd, no controller.
"""

import json
import os
import signal
import socket
import time
from dataclasses import replace

import pytest
from worker_fleet import (
    EXPERT_BYTES,
    EXPERTS,
    LAYERS,
    PAGES_PER_EXPERT,
    create,
    expert_pages,
    finish,
    prompt,
    spread,
)
from worker_site import ADDRESS, DEADLINE_S, DEVICES, wait_gone

from moectl.agents.engine.release import release_device
from moectl.core.checkpoint import read_tensor_entries
from moectl.core.errors import PoolExhaustedError
from moectl.core.plan import (
    Part,
    Placement,
    StepKind,
    TransitionKind,
)
from moectl.core.records import to_plain


def test_streams_keep_their_tokens_through_widths_2_4_3_2(fleet, expected):
    create(fleet, 2)
    fleet.is_talking = True
    for n in range(4):
        fleet.start_stream(prompt(n, 5 + 9 * n), 90, DEVICES[n % 2])
    for epoch, width in ((2, 4), (3, 3), (4, 2)):
        new, steps = spread(fleet.placement, DEVICES[:width], epoch)
        record, figures = fleet.change(TransitionKind.SCALE, new, steps)
        fleet.retire(record)
        moved = sum(int(each["bytes_copied"]) for each in figures.values())
        assert moved == sum(step.part is Part.EXPERT for step in steps) * EXPERT_BYTES
        held = expert_pages(fleet)
        for device in DEVICES:
            rank = new.rank_of(device)
            count = len(list(new.experts_on(rank))) if rank is not None else 0
            assert held[device] == count * PAGES_PER_EXPERT
        for device in new.ranks:
            status = fleet.workers[device].call("status")
            assert (status["state"], status["epoch"]) == ("serving", epoch)
        if width > 2:
            fleet.start_stream(prompt(10 + width, 12), 60, new.ranks[-1])
    fleet.is_talking = False
    finish(fleet, list(fleet.streams.values()), expected)
    # Only requests of ranks that left were replayed.
    assert {s.prompt for s in fleet.streams.values() if s.replays} <= {
        prompt(14, 12),
        prompt(13, 12),
    }


def test_a_creation_reads_every_byte_of_the_checkpoint_once_a_node(fleet, expected, checkpoint):
    new, steps = spread(None, DEVICES[:4], 1)
    record, figures = fleet.change(TransitionKind.CREATE, new, steps)
    sizes = {name: e.end - e.begin for name, e in read_tensor_entries(checkpoint).items()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert experts == LAYERS * EXPERTS * EXPERT_BYTES
    read = {device: int(each["bytes_read"]) for device, each in figures.items()}
    for node in ADDRESS:
        ranks = [new.rank_of(device) for device in DEVICES if device.node == node]
        held = sum(len(list(new.experts_on(rank))) for rank in ranks)
        once = sum(sizes.values()) - experts + held * EXPERT_BYTES
        assert sum(count for device, count in read.items() if device.node == node) == once
        with fleet.hmm(node) as hmm:
            assert hmm.layouts("loading:") == []
    fleet.retire(record)
    finish(fleet, [fleet.start_stream(prompt(80, 20), 20, DEVICES[3])], expected)


def test_a_killed_worker_is_healed_from_the_pages_it_left(fleet, expected):
    create(fleet, 3)
    streams = [fleet.start_stream(prompt(20 + n, 30), 100, DEVICES[n]) for n in range(3)]
    while not all(stream.tokens for stream in streams):
        time.sleep(0.01)
    before = expert_pages(fleet)
    os.kill(fleet.workers[DEVICES[1]].pid, signal.SIGKILL)
    for device in (DEVICES[0], DEVICES[2]):
        fleet.workers[device].call("peer_lost", epoch=1)
        assert fleet.workers[device].event("broken")["epoch"] == 1
    old = fleet.placement
    healed = Placement("tiny", 2, old.ranks, old.owners, (1, 2, 1))
    record, figures = fleet.change(TransitionKind.HEAL, healed, ())
    assert all(each["bytes_copied"] == 0 for each in figures.values())
    assert figures[DEVICES[1]]["shared_bytes"] == 0
    fleet.retire(record)
    finish(fleet, streams, expected)
    assert [stream.replays for stream in streams] == [0, 1, 0]
    assert expert_pages(fleet) == before


def test_workers_serve_on_while_their_hmm_is_killed_and_the_next_one_knows_all(
    fleet, site, expected
):
    create(fleet, 2)
    held = expert_pages(fleet)
    pids = {device: worker.pid for device, worker in fleet.workers.items()}
    streams = [fleet.start_stream(prompt(120 + n, 9), 60, DEVICES[n]) for n in range(2)]
    site.kill_hmm("n1")
    finish(fleet, streams, expected)
    assert expert_pages(fleet) == held
    with fleet.hmm("n1") as hmm:
        told = hmm.recovery()
        assert (told["waiting"], told["lost"], told["quarantined"]) == ([], [], 0)
    streams = [fleet.start_stream(prompt(130 + n, 9), 60, DEVICES[n]) for n in range(2)]
    new, steps = spread(fleet.placement, DEVICES[:4], fleet.placement.epoch + 1)
    record, _ = fleet.change(TransitionKind.SCALE, new, steps)
    fleet.retire(record)
    finish(fleet, streams, expected)
    assert {d: fleet.workers[d].pid for d in pids} == pids
    held = expert_pages(fleet)
    for device in DEVICES:
        count = len(list(new.experts_on(new.rank_of(device))))
        assert held[device] == count * PAGES_PER_EXPERT


def test_a_forfeit_gives_everything_back_and_the_old_epoch_serves_on(fleet, expected):
    create(fleet, 2)
    before = expert_pages(fleet)
    streams = [fleet.start_stream(prompt(40 + n, 8), 80, DEVICES[n]) for n in range(2)]
    new, steps = spread(fleet.placement, DEVICES[:4], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    for device in members:
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
    for device in members:
        assert fleet.workers[device].event("forfeited")["ok"]
    for device in DEVICES[2:]:
        fleet.end(device)
    assert expert_pages(fleet) == before
    for node in ADDRESS:
        with fleet.hmm(node) as hmm:
            assert hmm.call({"op": "usage"})["channels"] == []
            assert [name for name in hmm.layouts("experts:") if not name.endswith(":1")] == []
    finish(fleet, streams, expected)
    # The next one goes through.
    new, steps = spread(fleet.placement, DEVICES[:3], 3)
    fleet.retire(fleet.change(TransitionKind.SCALE, new, steps)[0])
    finish(fleet, [fleet.start_stream(prompt(50, 20), 20, DEVICES[2])], expected)


def budget(fleet, device):
    """Pages in use and claims of one device, by party."""
    with fleet.hmm(device.node) as hmm:
        (told,) = [each for each in hmm.usage() if each["device"] == device.device]
    return told["used"], told["claims"]


def test_kv_that_made_room_for_experts_has_it_back_after_a_forfeit(fleet, expected):
    create(fleet, 2)
    new, steps = spread(fleet.placement, DEVICES[:4], 2)
    fleet.retire(fleet.change(TransitionKind.SCALE, new, steps)[0])
    survivors = DEVICES[:2]
    before = {device: budget(fleet, device) for device in survivors}
    for used, claims in before.values():
        assert used["tiny/kv"] > claims["tiny/kv"][0] == 32  # grown above what is guaranteed
        assert used["tiny/experts"] == claims["tiny/experts"][0]
    new, steps = spread(fleet.placement, survivors, 3)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    for rank, device in enumerate(survivors):
        coming = sum(s.target == device and s.part is Part.EXPERT for s in steps)
        used, claims = budget(fleet, device)
        assert used["tiny/kv"] == before[device][0]["tiny/kv"] - coming * PAGES_PER_EXPERT
        assert claims["tiny/experts"][0] == len(list(new.experts_on(rank))) * PAGES_PER_EXPERT
    for device in members:
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
        assert fleet.workers[device].event("forfeited")["ok"]
    assert {device: budget(fleet, device) for device in survivors} == before
    finish(fleet, [fleet.start_stream(prompt(70, 20), 20, DEVICES[1])], expected)


def test_a_model_for_which_there_is_no_room_is_refused_by_name_and_leaves_nothing(fleet):
    with fleet.hmm(DEVICES[0].node) as other:
        others = other.reserve(DEVICES[0].device, 240, "code/kv")
        others.commit()
        new, steps = spread(None, DEVICES[:1], 1)
        record = fleet.record(TransitionKind.CREATE, new, steps)
        fleet.prepare(record)
        answer = fleet.workers[DEVICES[0]].event("prepared")
        assert not answer["ok"]
        # 9 of shared weights, 40 of experts and 32 of KV, said at once and before any is taken
        assert "d0: 81 pages needed, 16 free; held by: code/kv 240" in answer["error"]
        assert budget(fleet, DEVICES[0]) == ({"code/kv": 240}, {})
        other.check()
        other.free(DEVICES[0].device, others.pages, "code/kv")


def test_kv_above_its_share_makes_room_for_another_model(fleet, expected):
    create(fleet, 2)
    new, steps = spread(fleet.placement, DEVICES[:4], 2)
    fleet.retire(fleet.change(TransitionKind.SCALE, new, steps)[0])
    device, stream = DEVICES[0], fleet.start_stream(prompt(90, 20), 60, DEVICES[0])
    (used, claims), page = budget(fleet, device), 16384
    above = used["tiny/kv"] - claims["tiny/kv"][0]
    free = (4 << 20) // page - sum(used.values())
    with fleet.hmm(device.node) as other:
        wanted = {"code/kv": (free + above, 1.0)}
        with pytest.raises(PoolExhaustedError, match=f"tiny/kv above its share {above}"):
            other.ask_claims(device.device, wanted)
        pages = other.wanted(device.device)["tiny/kv"]  # what an agent reads and hands on
        fleet.workers[device].call("give_back", pages=pages)
        until = time.monotonic() + DEADLINE_S
        while budget(fleet, device)[0]["tiny/kv"] > claims["tiny/kv"][0]:
            assert time.monotonic() < until
            time.sleep(0.02)
        other.ask_claims(device.device, wanted)
        other.check()
    finish(fleet, [stream], expected)


def test_a_forfeit_ends_a_preparation_whose_peers_never_come(fleet, expected):
    create(fleet, 1)
    new, steps = spread(fleet.placement, (DEVICES[0], DEVICES[2]), 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    fleet.workers[DEVICES[0]].call("prepare", transition=to_plain(record))
    stream = fleet.start_stream(prompt(60, 8), 30, DEVICES[0])
    finish(fleet, [stream], expected)  # waiting for a peer disturbs nobody
    fleet.workers[DEVICES[0]].call("forfeit", operation_id=record.operation_id)
    assert fleet.workers[DEVICES[0]].event("forfeited")["ok"]
    assert fleet.workers[DEVICES[0]].call("status")["prepared_operation"] == ""


def test_a_lost_node_is_healed_on_the_node_that_is_left(fleet, expected):
    """Node n2 dies with all it holds: its experts come from the checkpoint."""
    create(fleet, 4)
    streams = [fleet.start_stream(prompt(80 + n, 10), 60, DEVICES[n]) for n in range(4)]
    while not all(stream.tokens for stream in streams):
        time.sleep(0.01)
    for device in DEVICES[2:]:
        os.kill(fleet.workers.pop(device).pid, signal.SIGKILL)
    for device in DEVICES[:2]:
        fleet.workers[device].call("peer_lost", epoch=1)
    new, steps = spread(fleet.placement, DEVICES[:2], 2)
    loads = tuple(replace(step, kind=StepKind.LOAD, source=None) for step in steps)
    record, figures = fleet.change(TransitionKind.HEAL, new, loads)
    fleet.retire(record)
    assert sum(each["bytes_copied"] for each in figures.values()) == len(loads) * EXPERT_BYTES
    finish(fleet, streams, expected)


def test_a_death_while_preparing_is_told_and_the_old_epoch_serves_on(fleet, expected):
    create(fleet, 2)
    fleet.is_talking = True
    for n in range(2):
        fleet.start_stream(prompt(90 + n, 10), 40, DEVICES[n])
    new, steps = spread(fleet.placement, DEVICES[:4], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    for rank in (2, 3):
        fleet.spawn(DEVICES[rank], 1)
    for device in DEVICES[:3]:  # the last one is never told: the others wait for it in their groups
        fleet.workers[device].call("prepare", transition=to_plain(record))
    os.kill(fleet.workers.pop(DEVICES[3]).pid, signal.SIGKILL)
    for device in DEVICES[:3]:
        fleet.workers[device].call("forfeit", operation_id=record.operation_id)
    for device in DEVICES[:3]:
        assert fleet.workers[device].event("forfeited")["ok"]
    fleet.end(DEVICES[2])
    assert set(expert_pages(fleet).values()) == {0, EXPERTS * LAYERS // 2 * PAGES_PER_EXPERT}
    fleet.is_talking = False
    finish(fleet, list(fleet.streams.values()), expected)


def test_a_rank_that_dies_in_the_new_epoch_is_healed_from_there(fleet, expected):
    """COMMIT is never taken back: whoever had flipped, all meet again in the epoch after it."""
    create(fleet, 2)
    streams = [fleet.start_stream(prompt(100 + n, 10), 150, DEVICES[n]) for n in range(2)]
    new, steps = spread(fleet.placement, DEVICES[:3], 2)
    record = fleet.record(TransitionKind.SCALE, new, steps)
    members = fleet.prepare(record)
    for device in members:
        assert fleet.workers[device].event("prepared")["ok"]
    fleet.workers[DEVICES[0]].call("commit", operation_id=record.operation_id)
    os.kill(fleet.workers[DEVICES[2]].pid, signal.SIGKILL)
    fleet.workers[DEVICES[1]].call("commit", operation_id=record.operation_id)
    for device in DEVICES[:2]:
        fleet.workers[device].call("peer_lost", epoch=2)
        assert fleet.workers[device].event("committed")["ok"]
        assert fleet.workers[device].event("broken")["epoch"] == 2
    fleet.placement = new
    healed = replace(new, epoch=3, instances=(1, 1, 2))
    fleet.retire(fleet.change(TransitionKind.HEAL, healed, ())[0])
    streams.append(fleet.start_stream(prompt(103, 10), 30, DEVICES[2]))
    finish(fleet, streams, expected)
    assert [stream.replays for stream in streams[:2]] == [0, 0]


def test_who_has_no_secret_or_speaks_nonsense_is_cut_off_and_nobody_else(fleet, expected):
    create(fleet, 1)
    worker = fleet.workers[DEVICES[0]]
    host, port = worker.address.split(":")
    wrong = ({"hello": 1, "secret": "guess"}, {"op": "submit", "id": "a"})
    for first in (*(json.dumps(each).encode() for each in wrong), b"nonsense"):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(len(first).to_bytes(4, "big") + first)
            assert sock.recv(100) == b""
    stream = fleet.start_stream(prompt(110, 1100), 20, DEVICES[0])  # longer than the context
    assert stream.ended.wait(DEADLINE_S)
    assert stream.reason.startswith("refused:a prompt of 1100 tokens")
    finish(fleet, [fleet.start_stream(prompt(111, 20), 20, DEVICES[0])], expected)


def test_a_stopped_worker_tells_its_requests_to_move_and_its_device_can_be_released(fleet):
    create(fleet, 1)
    stream = fleet.start_stream(prompt(70, 8), 200, DEVICES[0])
    while not stream.tokens:
        time.sleep(0.01)
    os.kill(fleet.workers[DEVICES[0]].pid, signal.SIGTERM)
    assert stream.moved_off.wait(DEADLINE_S)
    wait_gone(fleet.workers.pop(DEVICES[0]).pid)
    with fleet.hmm("n1") as hmm:
        assert release_device(hmm, "tiny", "d0") > 0
        assert hmm.usage()[0]["used"] == {}
        assert hmm.layouts() == []
