"""Rows sent to other ranks come back with the very bits that one rank would have computed."""

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from moectl.agents.engine.comm.base import SoloExchange
from moectl.agents.engine.comm.shm import ShmExchange, region_bytes
from moectl.agents.engine.dispatch import DistributedMoe, exchange_bytes_max
from moectl.agents.engine.moe import ExpertSlots, LocalMoe
from moectl.core.errors import EngineError

LAYERS, EXPERTS, K, H, INNER = 2, 7, 3, 32, 16


def channel(ranks, bytes_per_rank):
    memfd = os.memfd_create("channel")
    os.ftruncate(memfd, ranks * bytes_per_rank)
    return SimpleNamespace(
        memfd=memfd,
        eventfds=[[os.eventfd(0, os.EFD_NONBLOCK) for _ in range(ranks)] for _ in range(ranks)],
    )


def slots_of(weights, experts):
    """ExpertSlots that hold only some (layer, expert), packed in the order given."""
    elements = 3 * INNER * H
    flat = torch.cat([weights[pair] for pair in experts] or [torch.zeros(0)])
    shapes = {"gate_up": (2 * INNER, H), "down": (H, INNER)}
    table = {pair: slot for slot, pair in enumerate(experts)}
    return ExpertSlots.over(flat, elements, shapes, table, (LAYERS, EXPERTS))


def make_inputs(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, H, generator=generator)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:K] for _ in range(rows)])
    weights = torch.rand(rows, K, generator=generator)
    return x, ids, weights


def placed(width, copies):
    """Owners [L][E]: expert e of layer l on rank e + l, and `copies` - 1 more on the next ranks.

    Layer 0 has copies of even experts alone, so that layers and experts differ.
    """
    return [
        [
            sorted({(e + at + i) % width for i in range(copies if at or e % 2 == 0 else 1)})
            for e in range(EXPERTS)
        ]
        for at in range(LAYERS)
    ]


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize(
    ("width", "rows"), [(1, (5,)), (2, (3, 0)), (3, (1, 9, 4)), (5, (0, 2, 0, 17, 1)), (2, (0, 0))]
)
def test_a_row_has_the_same_bits_at_every_width_and_however_it_is_split(width, rows, copies):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    every = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
    weights = {pair: torch.randn(3 * INNER * H, generator=generator) for pair in every}
    owners = placed(width, copies)
    alone = LocalMoe(slots_of(weights, every))
    size = region_bytes(exchange_bytes_max(max(rows), width, K, H * 4))
    shared = channel(width, size)

    def rank_runs(rank):
        exchange = ShmExchange(shared, rank, width, size) if width > 1 else SoloExchange()
        mine = [(layer, e) for layer, e in every if rank in owners[layer][e]]
        moe = DistributedMoe(exchange, slots_of(weights, mine), owners)
        for layer in range(LAYERS):
            inputs = (
                make_inputs(rows[rank], 10 * layer + rank)
                if rows[rank]
                else (torch.zeros(0, H), torch.zeros(0, K, dtype=torch.int64), torch.zeros(0, K))
            )
            moe.begin_step(rows)
            assert torch.equal(moe.run(layer, *inputs), alone.run(layer, *inputs))
        return int(moe.computed_LE.sum())

    with ThreadPoolExecutor(width) as pool:
        computed = list(pool.map(rank_runs, range(width)))
    assert sum(computed) == sum(rows) * K * LAYERS


def test_an_expert_that_is_on_no_rank_is_an_error_that_names_it():
    weights = {(layer, e): torch.zeros(3 * INNER * H) for layer in range(LAYERS) for e in range(2)}
    moe = DistributedMoe(
        SoloExchange(), slots_of(weights, list(weights)), [[[0]] * EXPERTS] * LAYERS
    )
    moe.begin_step([4])
    with pytest.raises(EngineError, match=r"not on this rank"):
        moe.run(0, *make_inputs(4, 3))
