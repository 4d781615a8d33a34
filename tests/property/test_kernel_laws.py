"""Laws of the kernels: both implementations agree, and a row never depends on its neighbours."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.kernels import attention, experts, native
from moectl.kernels.attention import AttentionForm, PagedRows
from moectl.kernels.experts import ExpertWeights

needs_native = pytest.mark.skipif(native.extension is None, reason="the extension is not built")
ATTENTIONS = [
    pytest.param(attention.paged_attention, id="native", marks=needs_native),
    pytest.param(attention.paged_attention_reference, id="reference"),
]
PAIRS = [
    pytest.param(experts.expert_pairs, id="native", marks=needs_native),
    pytest.param(experts.expert_pairs_reference, id="reference"),
]
HEADS, KV_HEADS, DEPTH, BLOCK = 4, 2, 16, 4
LAWS = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texts(lengths, seed):
    """Per lane: queries, keys and values of every position."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(
            torch.randn(length, heads, DEPTH, generator=generator)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        for length in lengths
    ]


def walk(attend, lanes, order, random, form):
    """Feed all positions of all lanes, chunked as `random` likes; outputs per lane."""
    lengths = [len(q) for q, _, _ in lanes]
    width = -(-max(lengths) // BLOCK)
    table_LW = np.array(order, dtype=np.int64).reshape(len(lanes), width)
    cache = torch.full((table_LW.size, 2, BLOCK, KV_HEADS, DEPTH), float("nan"))
    done, outputs = [0] * len(lanes), [[] for _ in lanes]
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        chunks = [random.randint(0, n - d) for d, n in zip(done, lengths, strict=True)]
        spans = [(lane, done[lane], chunk) for lane, chunk in enumerate(chunks) if chunk]
        if not spans:
            continue
        rows = PagedRows(
            np.concatenate([np.full(c, lane) for lane, _, c in spans]).astype(np.int64),
            np.concatenate([np.arange(d, d + c) for _, d, c in spans]).astype(np.int64),
            table_LW,
        )
        q, k, v = (
            torch.cat([lanes[lane][part][d : d + c] for lane, d, c in spans]) for part in range(3)
        )
        out = attend(q, k, v, cache, rows, form)
        at = 0
        for lane, _, chunk in spans:
            outputs[lane].append(out[at : at + chunk])
            done[lane] += chunk
            at += chunk
    return [torch.cat(parts) for parts in outputs]


@pytest.mark.parametrize("attend", ATTENTIONS)
@LAWS
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    window=st.sampled_from([None, 1, 9, 64, 100]),
    chunk_seed=st.integers(0, 1000),
)
def test_attention_bits_do_not_depend_on_company_chunks_or_blocks(
    attend, lengths, seed, window, chunk_seed
):
    random = Random(chunk_seed)
    lanes = texts(lengths, seed)
    form = AttentionForm(DEPTH**-0.5, window)
    order = list(range(len(lanes) * -(-max(lengths) // BLOCK)))
    first = walk(attend, lanes, order, random, form)
    random.shuffle(order)
    second = walk(attend, lanes, order, random, form)
    for lane, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b)
        alone = walk(attend, [lanes[lane]], range(-(-lengths[lane] // BLOCK)), random, form)
        assert torch.equal(a, alone[0])


@needs_native
@LAWS
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    window=st.sampled_from([None, 1, 9, 64, 100]),
    sinks=st.booleans(),
    chunk_seed=st.integers(0, 1000),
)
def test_compiled_and_reference_attention_agree(lengths, seed, window, sinks, chunk_seed):
    random = Random(chunk_seed)
    lanes = texts(lengths, seed)
    form = AttentionForm(DEPTH**-0.5, window, torch.linspace(-1, 2, HEADS) if sinks else None)
    order = list(range(len(lanes) * -(-max(lengths) // BLOCK)))
    both = [
        walk(attend, lanes, order, random, form)
        for attend in (attention.paged_attention, attention.paged_attention_reference)
    ]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def layer(seed):
    generator = torch.Generator().manual_seed(seed)
    return ExpertWeights(
        torch.randn(6, 48, 32, generator=generator) * 0.2,
        torch.randn(6, 32, 24, generator=generator) * 0.2,
    )


@pytest.mark.parametrize("compute", PAIRS)
@LAWS
@given(
    pairs=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 5)), min_size=1, max_size=60),
    seed=st.integers(0, 1000),
    chosen_seed=st.integers(0, 1000),
)
def test_an_experts_bits_do_not_depend_on_the_other_pairs(compute, pairs, seed, chosen_seed):
    weights = layer(seed)
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(seed + 1))
    row, slot = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    together = compute(x, row, slot, weights)
    random = Random(chosen_seed)
    chosen = random.sample(range(len(pairs)), random.randint(1, len(pairs)))
    some = compute(x, row[chosen], slot[chosen], weights)
    assert torch.equal(some, together[chosen])


@needs_native
@LAWS
@given(
    pairs=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 5)), min_size=1, max_size=60),
    seed=st.integers(0, 1000),
)
def test_compiled_and_reference_experts_agree(pairs, seed):
    weights = layer(seed)
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(seed + 1))
    row, slot = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    native_y = experts.expert_pairs(x, row, slot, weights)
    reference_y = experts.expert_pairs_reference(x, row, slot, weights)
    torch.testing.assert_close(native_y, reference_y, atol=1e-5, rtol=1e-5)
