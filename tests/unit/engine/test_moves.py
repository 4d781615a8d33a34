"""Who goes where when a rank leaves, what is held for them there, and who reads them then."""

import json
from dataclasses import replace

import pytest
import torch

from moectl.agents.engine.claims import Claims, since
from moectl.agents.engine.incoming import Incoming
from moectl.agents.engine.kv import BlockAllocator, KvPool
from moectl.agents.engine.move_wire import runs_of
from moectl.agents.engine.moves import Room, Standing, plan_moves
from moectl.agents.engine.request import DoneOut, Grammar, Request, Sampling, TokenOut
from moectl.agents.engine.submit import message_of, request_of

BLOCK = 16


def standing(name, tokens, priority=0, is_running=True):
    return Standing(name, priority, tokens, tokens + 100, tokens - 1, (), 0, is_running)


def room(device, blocks, lanes=4, queue=9, is_near=False):
    return Room(device, blocks, lanes, queue, is_near)


def test_a_receiver_of_the_same_node_is_preferred_then_the_one_with_most_room():
    rooms = [room("n2/d0", 50), room("n2/d1", 90), room("n1/d1", 4, is_near=True)]
    plan = plan_moves([standing("a", 40), standing("b", 20), standing("c", 20)], rooms, BLOCK)
    assert plan.moves == {"a": "n1/d1", "b": "n2/d1", "c": "n2/d1"}
    assert [each.blocks for each in plan.rooms] == [50, 84, 0]


def test_the_urgent_and_then_those_with_most_kv_get_the_room_there_is():
    requests = [standing("long", 300), standing("short", 40), standing("urgent", 40, priority=1)]
    plan = plan_moves(requests, [room("n1/d0", 25)], BLOCK)
    assert plan.moves == {"urgent": "n1/d0", "long": "n1/d0"}
    assert plan.stays == {"short": "4 KV blocks needed, at most 1 are free on a rank that stays"}


def test_a_waiting_request_needs_a_place_in_the_queue_alone():
    full = room("n1/d0", 0, lanes=0)
    plan = plan_moves([standing("w", 40, is_running=False), standing("r", 40)], [full], BLOCK)
    assert plan.moves == {"w": "n1/d0"}
    assert "as many requests as it may have" in plan.stays["r"]


def test_without_a_receiver_the_reason_is_told():
    assert plan_moves([standing("a", 9)], [], BLOCK).stays == {
        "a": "no rank stays that could take it"
    }


def test_ranks_that_leave_together_begin_with_different_receivers():
    rooms = [room("n2/d0", 50), room("n2/d1", 50), room("n2/d2", 50)]
    firsts = [plan_moves([standing("a", 9)], rooms, BLOCK, turn).moves["a"] for turn in range(3)]
    assert sorted(firsts) == ["n2/d0", "n2/d1", "n2/d2"]


def test_no_more_blocks_are_wanted_than_a_request_can_ever_fill():
    near_its_end = replace(standing("a", 64), tokens_max=64)
    assert (near_its_end.blocks_wanted(BLOCK), standing("a", 64).blocks_wanted(BLOCK)) == (4, 5)


def test_held_blocks_follow_a_shrink_or_are_given_up_by_it():
    blocks = BlockAllocator(10)
    incoming = Incoming(blocks)
    first = blocks.allocate(4)
    assert incoming.hold("a", 3) and incoming.hold("b", 2)
    blocks.free(first[:3])
    incoming.move(blocks.relocate(6))
    incoming.drop_from(6)
    assert incoming.blocks_of("a") == (4, 5, 0) and incoming.blocks_of("b") == (1, 2)
    blocks.shrink(4)
    assert incoming.changes == 1
    assert incoming.hold("a", 4) is False  # nothing is free, and nothing was taken
    incoming.drop_from(5)
    assert incoming.blocks_of("a") == () and incoming.blocks_of("b") == (1, 2)
    incoming.drop("b")
    incoming.drop("never there")
    blocks.check()
    assert (incoming.count, blocks.used_count) == (0, 1)


@pytest.mark.parametrize(
    "shape", [(5, 2, 2, 8, 2, 16), (5, 3, 1, 8, 1, 24)], ids=["keys and values", "latents"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_bytes_whatever_they_hold(shape, dtype):
    pool, other = KvPool(torch.randn(shape).to(dtype)), KvPool(torch.zeros(shape, dtype=dtype))
    other.bytes_of(0, 2).copy_(pool.bytes_of(3, 2))
    assert torch.equal(other.view[:2], pool.view[3:])
    assert pool.bytes_of(0, 1).numel() == pool.block_bytes


def test_neighbours_are_copied_in_one_go():
    assert list(runs_of([3, 4, 5, 9, 8, 2, 3])) == [(3, 3), (9, 1), (8, 1), (2, 2)]
    assert list(runs_of([])) == []


def test_a_request_survives_the_wire_with_everything_it_was_asked_with():
    sampling = Sampling(0.5, 0.9, 3, 11, 0.1, 1.2, 0.5, -0.5, ((5, 2.5),), 2, Grammar("regex", "a"))
    request = Request("k", (1, 2), 50, sampling, (0,), (4, 5), -3, "tenant")
    for each in (request, Request("k", (1,), 5)):
        assert request_of(json.loads(json.dumps(message_of(each))), "k") == each


def test_a_moved_request_is_claimed_once_from_the_token_that_its_reader_lacks():
    claims = Claims()
    claims.open("k", (1, 2))
    for index in range(3, 6):
        claims.keep_token(TokenOut("k", index, 10 + index))
    claims.keep_token(TokenOut("unknown", 0, 1))
    assert claims.take("k", [1, 3]) is None  # another prompt: not the one that is meant
    found = claims.take("k", [1, 2])
    assert [token.index for token in since(found, 4).tokens] == [4, 5]
    assert claims.take("k", [1, 2]) is None
    assert claims.expire("k") is False


def test_a_moved_request_that_ended_before_its_reader_came_still_ends_for_it():
    claims = Claims()
    claims.open("k", (1,))
    claims.keep_done(DoneOut("k", "stop"), {"decode_ms": 1.0})
    found = claims.take("k", [1])
    assert since(found, 0).dones == (DoneOut("k", "stop"),)
    claims.open("other", (1,))
    assert claims.expire("other") is True
