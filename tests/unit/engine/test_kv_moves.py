"""Shrinking KV moves what is held to lower blocks, content, holders and keys included."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.agents.engine.kv import BlockAllocator, KvPool


def test_held_blocks_move_down_with_their_keys():
    blocks = BlockAllocator(8)
    held = blocks.allocate(8)
    blocks.remember(6, b"six")
    blocks.free(held[:5])
    assert blocks.relocate(5) == {5: 0, 6: 1, 7: 2}
    blocks.check()
    assert blocks.hold(b"six") == 1
    blocks.shrink(3)
    blocks.check()


def test_remembered_content_gives_way_to_held_content():
    blocks = BlockAllocator(3)
    blocks.allocate(3)
    blocks.remember(0, b"old")
    blocks.free([0])
    assert blocks.relocate(2) == {2: 0}
    assert blocks.hold(b"old") is None
    blocks.check()


def test_what_finds_no_place_stays_where_it_is():
    blocks = BlockAllocator(4)
    blocks.allocate(4)
    blocks.free([1])
    assert blocks.relocate(2) == {2: 1}
    assert blocks.used_count == 3
    blocks.check()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.data())
def test_no_block_is_lost_or_held_twice(total: int, data: st.DataObject):
    blocks = BlockAllocator(total)
    held = blocks.allocate(data.draw(st.integers(0, total)))
    for block in list(held):
        if data.draw(st.booleans()):
            blocks.remember(block, bytes([block]))
    gone = [block for block in held if data.draw(st.booleans())]
    blocks.free(gone)
    before, first = blocks.used_count, data.draw(st.integers(0, total))
    moved = blocks.relocate(first)
    blocks.check()
    assert blocks.used_count == before
    assert all(old >= first > new for old, new in moved.items())


def test_content_is_copied_whole():
    pool = KvPool(torch.arange(24.0).view(3, 1, 2, 2, 1, 2))
    pool.copy(2, 0)
    assert torch.equal(pool.view[0], pool.view[2])
