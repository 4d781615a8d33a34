"""Laws of the scheduler over random loads, cancellations, failed steps and pool sizes."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_rig import EOS, LAWS, Rig, budgets, load, right_answer

from moectl.agents.engine.batch import build_batch
from moectl.agents.engine.kv import BlockAllocator
from moectl.agents.engine.request import DoneReason, Request
from moectl.agents.engine.schedule import EngineRefused, Limits, Scheduler


@LAWS
@given(
    limits=budgets, seed=st.integers(0, 9999), count=st.integers(1, 12), spare=st.integers(0, 40)
)
def test_every_request_gets_its_own_right_answer(limits, seed, count, spare):
    requests = load(seed, count, 40)
    least = -(-limits.max_context // limits.block_tokens)
    rig = Rig(limits, least + spare)
    random = Random(seed)
    for request in requests:
        rig.scheduler.submit(request)
        for _ in range(random.randint(0, 3)):
            rig.step(fails=random.random() < 0.3)
    rig.finish(5000)
    for request in requests:
        assert (rig.tokens[request.id], rig.dones[request.id]) == right_answer(request, limits)


@LAWS
@given(limits=budgets, seed=st.integers(0, 9999), count=st.integers(1, 10))
def test_cancelled_requests_end_once_and_free_everything(limits, seed, count):
    requests = load(seed, count, 40)
    rig = Rig(limits, -(-limits.max_context // limits.block_tokens) + 4)
    random = Random(seed)
    cancelled = set()
    for request in requests:
        rig.scheduler.submit(request)
        rig.step()
        if random.random() < 0.5:
            victim = random.choice(requests).id
            if rig.scheduler.cancel(victim):
                cancelled.add(victim)
    rig.finish(5000)
    assert rig.dones.keys() == {request.id for request in requests}
    for request in requests:
        tokens, reason = right_answer(request, limits)
        if request.id in cancelled:
            assert rig.dones[request.id] == DoneReason.CANCELLED
            assert rig.tokens.get(request.id, []) == tokens[: len(rig.tokens.get(request.id, []))]
        else:
            assert (rig.tokens[request.id], rig.dones[request.id]) == (tokens, reason)


@LAWS
@given(seed=st.integers(0, 9999), changes=st.lists(st.integers(-12, 12), min_size=1, max_size=8))
def test_growing_and_shrinking_the_pool_changes_no_answer(seed, changes):
    limits = Limits(16, 6, 8, block_tokens=4, max_context=64)
    rig = Rig(limits, 30)
    requests = load(seed, 6, 40)
    for request in requests:
        rig.scheduler.submit(request)
    for change in changes:
        rig.step()
        rig.step()
        if change >= 0:
            rig.blocks.grow(change)
        elif rig.blocks.total + change >= 16:
            rig.scheduler.preempt_blocks_from(rig.blocks.total + change)
            rig.blocks.shrink(-change)
        rig.blocks.check()
    rig.finish(5000)
    for request in requests:
        assert (rig.tokens[request.id], rig.dones[request.id]) == right_answer(request, limits)


def test_a_short_prompt_behind_long_ones_starts_within_a_round():
    limits = Limits(max_batch_tokens=16, max_requests=8, prefill_chunk=8, max_context=4096)
    rig = Rig(limits, 4096)
    for i in range(4):
        rig.scheduler.submit(Request(f"long{i}", (i + 1,) * 1000, 5))
    rig.step()
    rig.scheduler.submit(Request("short", (1, 2, 3), 5))
    steps = 0
    while "short" not in rig.tokens:
        rig.step()
        steps += 1
    assert steps <= 4  # five prompts, two chunks a step


def test_decoding_goes_on_in_every_step_while_a_long_prompt_is_read():
    limits = Limits(max_batch_tokens=16, max_requests=8, prefill_chunk=8, max_context=4096)
    rig = Rig(limits, 4096)
    rig.scheduler.submit(Request("talks", (1, 2), 500))
    rig.step()
    rig.scheduler.submit(Request("reads", tuple(1 for _ in range(800)), 5))
    for expected in range(2, 100):
        rig.step()
        assert len(rig.tokens["talks"]) == expected


def test_a_queue_of_prompts_is_read_in_whole_rounds():
    limits = Limits(max_batch_tokens=8, max_requests=6, prefill_chunk=4, max_context=4096)
    rig = Rig(limits, 4096)
    for i in range(4):
        rig.scheduler.submit(Request(str(i), (i + 1,) * 100, 5))
    for _ in range(10):
        rig.step()
    read = [sequence.computed for sequence in rig.scheduler._running]
    assert max(read) - min(read) <= limits.prefill_chunk


def test_a_prefix_is_computed_once_whether_it_comes_together_or_later():
    limits = Limits(max_batch_tokens=32, max_requests=8, prefill_chunk=8, block_tokens=4)
    prefix, rows = tuple(range(1, 12)) * 4, []
    for together in (True, False):
        rig = Rig(limits, 400)
        for i in range(6):
            rig.scheduler.submit(Request(str(i), (*prefix, i + 1, i + 2), 3))
            if not together:
                rig.finish(100)
        rig.finish(100)
        rows.append(rig.scheduler.prompt_tokens_reused)
        assert rig.blocks.remembered_count > 0
    assert rows == [5 * 44, 5 * 44]


def test_requests_of_another_salt_share_nothing():
    rig = Rig(Limits(block_tokens=4), 400)
    for i, salt in enumerate(("", "a", "b", "a")):
        rig.scheduler.submit(Request(str(i), (7,) * 41, 2, cache_salt=salt))
        rig.finish(50)
    assert rig.scheduler.prompt_tokens_reused == 40


def test_a_resting_prefix_gives_way_before_anything_is_refused():
    rig = Rig(Limits(block_tokens=4, max_context=64), 16)
    for i in range(8):
        rig.scheduler.submit(Request(str(i), (i + 1,) * 40, 4))
        rig.finish(50)
    assert rig.scheduler.preemptions == 0 and rig.blocks.free_count == 16


def test_an_urgent_request_takes_the_place_of_the_last_in_line():
    limits = Limits(max_batch_tokens=16, max_requests=2, prefill_chunk=8, block_tokens=4)
    rig = Rig(limits, 400)
    requests = load(5, 4, 30)
    requests = [replace(each, max_tokens=20, eos_ids=(), priority=0) for each in requests]
    for each in requests[:3]:
        rig.scheduler.submit(each)
    for _ in range(6):
        rig.step()
    rig.scheduler.submit(replace(requests[3], priority=1))
    rig.step()
    assert "3" in {each.request.id for each in rig.scheduler._running}
    assert rig.scheduler.preemptions == 1
    rig.finish(500)
    order = list(rig.dones)
    assert order.index("3") < order.index("2")
    for each in requests:
        assert rig.tokens[each.id] == right_answer(each, limits)[0]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request("a", (), 5), "empty"),
        (Request("a", (1,), 0), "no token"),
        (Request("a", tuple(range(64)), 5), "context"),
        (Request("a", tuple(range(40)), 20), "KV blocks"),
    ],
)
def test_what_can_never_run_is_refused_with_its_reason(request_, why):
    scheduler = Scheduler(Limits(block_tokens=4, max_context=64), BlockAllocator(12))
    with pytest.raises(EngineRefused, match=why):
        scheduler.submit(request_)
    assert not scheduler.has_work


def test_the_queue_has_a_limit_and_ids_are_unique():
    scheduler = Scheduler(Limits(max_queued=2), BlockAllocator(8))
    scheduler.submit(Request("a", (1,), 5))
    with pytest.raises(EngineRefused, match="already"):
        scheduler.submit(Request("a", (1,), 5))
    scheduler.submit(Request("b", (1,), 5))
    with pytest.raises(EngineRefused, match="queue full"):
        scheduler.submit(Request("c", (1,), 5))


def test_a_replay_with_nothing_left_to_do_ends_at_once():
    scheduler = Scheduler(Limits(), BlockAllocator(8))
    scheduler.submit(Request("full", (1, 2), 3, already=(5, 6, 7)))
    scheduler.submit(Request("ended", (1, 2), 9, eos_ids=(EOS,), already=(5, EOS)))
    assert scheduler.plan_step() is None and scheduler.has_work
    assert [done.reason for done in scheduler.drain_dones()] == ["length", "stop"]
    assert not scheduler.has_work


def test_planning_twice_gives_the_same_rows():
    scheduler = Scheduler(Limits(16, 8, 8), BlockAllocator(64))
    for i in range(4):
        scheduler.submit(Request(str(i), tuple(range(i + 1, i + 30)), 5))
    first, second = scheduler.plan_step(), scheduler.plan_step()
    assert first == second
    assert np.array_equal(
        build_batch(first, scheduler.table_LW).token_T,
        build_batch(second, scheduler.table_LW).token_T,
    )
