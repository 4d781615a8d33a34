"""Laws of requests that go on with another scheduler: nothing is lost, nothing computed again."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_rig import LAWS, Rig, budgets, load, right_answer

from moectl.agents.engine.incoming import Incoming
from moectl.agents.engine.kv import BlockAllocator
from moectl.agents.engine.moves import Room, plan_moves
from moectl.agents.engine.request import DoneReason, Request
from moectl.agents.engine.schedule import EngineRefused, Limits, Scheduler


def move(left, right, random):
    """Hand requests over as two ranks do; returns those that moved, with their computed tokens."""
    size, incoming = left.limits.block_tokens, Incoming(right.blocks)
    standing = {each.id: each for each in left.scheduler.standing()}
    free = right.blocks.free_count - right.scheduler.running_count
    room = Room("n/d", max(free, 0), right.scheduler.lanes_free, right.scheduler.queue_free, True)
    plan = plan_moves(standing.values(), [room], size)
    assert plan.moves.keys() | plan.stays.keys() == standing.keys()
    moved = {}
    for name, now in standing.items():
        request = left.scheduler.continued(name)
        right.tokens[name] = list(request.already)
        if name not in plan.moves or random.random() < 0.1 or not now.computed:
            right.scheduler.submit(request)
            continue
        assert incoming.hold(name, now.blocks_wanted(size))
        places = zip(now.blocks, incoming.blocks_of(name), strict=False)
        for source, target in list(places)[: -(-now.computed // size)]:
            right.kv |= {(target, p): left.kv.get((source, p)) for p in range(size)}
        right.scheduler.adopt(request, now.computed, incoming.blocks_of(name))
        incoming.take(name)
        moved[name] = now.computed
    assert incoming.count == 0
    for name in standing:
        left.scheduler.cancel(name, DoneReason.MOVED)
    left.finish(1)
    right.blocks.check()
    return moved


@LAWS
@given(
    limits=budgets, seed=st.integers(0, 9999), count=st.integers(1, 10), spare=st.integers(0, 60)
)
def test_requests_that_move_keep_their_answers_and_compute_nothing_again(
    limits, seed, count, spare
):
    requests, random = load(seed, count, 40), Random(seed)
    least = -(-limits.max_context // limits.block_tokens)
    left, right = Rig(limits, least + spare), Rig(limits, least + spare)
    here = [request for request in requests if random.random() < 0.3]
    for request in requests:
        (right if request in here else left).scheduler.submit(request)
    for _ in range(random.randint(0, 30)):
        left.step(fails=random.random() < 0.2)
        right.step()
    for name, computed in move(left, right, random).items():
        sequence = right.scheduler._by_id[name]
        assert (sequence.computed, sequence.lane >= 0) == (computed, True)
    right.finish(5000)
    for request in requests:
        done = left.dones.get(request.id)
        rig = right if done in (None, DoneReason.MOVED) else left
        assert (rig.tokens[request.id], rig.dones[request.id]) == right_answer(request, limits)


def test_a_request_that_comes_with_its_kv_needs_a_lane_and_leaves_its_prefix_behind():
    limits = Limits(16, 2, 8, block_tokens=4, max_context=64)
    blocks = BlockAllocator(20)
    scheduler = Scheduler(limits, blocks)
    for name in ("a", "b"):
        held = blocks.allocate(3)
        scheduler.adopt(Request(name, tuple(range(1, 9)), 6, already=(3, 4)), 9, held)
    held = blocks.allocate(3)
    with pytest.raises(EngineRefused, match="lane"):
        scheduler.adopt(Request("c", (1, 2), 6), 1, held)
    blocks.free(held)  # still the caller's
    plan = scheduler.plan_step()
    assert [(item.start, item.count) for item in plan.items] == [(9, 1), (9, 1)]
    scheduler.complete_step(plan, [5, 5])
    assert blocks.remembered_count == 2  # of equal content, once
    assert scheduler.table_LW[plan.items[0].sequence.lane, :3].tolist() == [0, 1, 2]
