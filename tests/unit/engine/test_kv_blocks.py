"""Blocks are free or held, never both, through growing and shrinking."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.agents.engine.kv import BlockAllocator, KvPool
from moectl.core.errors import InvariantError, MappingError


def test_blocks_are_handed_out_lowest_first_and_come_back():
    blocks = BlockAllocator(4)
    assert blocks.allocate(3) == [0, 1, 2]
    assert blocks.allocate(2) is None and blocks.free_count == 1
    blocks.free([1])
    assert blocks.allocate(1) == [1]
    blocks.check()


def test_freeing_twice_is_our_bug():
    blocks = BlockAllocator(2)
    held = blocks.allocate(1)
    blocks.free(held)
    with pytest.raises(InvariantError, match="not held"):
        blocks.free(held)


def test_shrinking_below_a_held_block_is_refused_whole():
    blocks = BlockAllocator(4, order=[3, 0, 1, 2])
    blocks.allocate(1)
    with pytest.raises(MappingError, match=r"held: \[3\]"):
        blocks.shrink(1)
    assert blocks.total == 4
    blocks.check()


def test_an_order_must_name_every_block():
    with pytest.raises(MappingError):
        BlockAllocator(3, order=[0, 0, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("afgs"), st.integers(0, 6)), max_size=40))
def test_free_and_held_are_always_all_blocks(acts):
    blocks, held = BlockAllocator(5), []
    for act, count in acts:
        if act == "a":
            held += blocks.allocate(count) or []
        elif act == "f":
            blocks.free(held[:count])
            del held[:count]
        elif act == "g":
            blocks.grow(count)
        elif all(block < blocks.total - count for block in held) and count <= blocks.total:
            blocks.shrink(count)
        blocks.check()
        assert blocks.used_count == len(held) and len(set(held)) == len(held)


def test_a_pool_over_a_window_knows_what_is_backed():
    pool = KvPool.over(torch.zeros(1000), (2, 2, 4, 1, 8), blocks=3)
    assert tuple(pool.view.shape) == (7, 2, 2, 4, 1, 8)
    assert pool.block_tokens == 4 and len(pool.layers) == 2
    pool.grow(4)
    with pytest.raises(MappingError, match="room for"):
        pool.grow(1)
    pool.shrink(7)
    assert pool.blocks == 0


def test_a_layers_view_is_the_memory_of_its_blocks():
    pool = KvPool.over(torch.zeros(7 * 128), (2, 2, 4, 1, 8), blocks=7)
    pool.layers[1][3, 0, 2] = 5.0
    assert (pool.view[3, 1, 0, 2] == 5.0).all() and pool.view.sum() == 40.0
