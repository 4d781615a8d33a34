"""Attention over latents equals expanding them and attending, in float64, for both paths."""

import numpy as np
import pytest
import torch

from moectl.kernels import native
from moectl.kernels.attention import AttentionForm, PagedRows
from moectl.kernels.latent import HeadWeights, latent_attention

HEADS, PLAIN, ROTATED, LATENT, VALUE, BLOCK = 20, 16, 8, 32, 24, 4


@pytest.fixture(params=["native", "reference"])
def path(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(native, "extension", None)
    elif native.extension is None:
        pytest.skip("not built")


def past_and_rows(lengths, seed=0):
    """Latents of every lane's positions, and rows that write and ask for all of them."""
    torch.manual_seed(seed)
    latents = [torch.randn(length, LATENT + ROTATED) for length in lengths]
    queries = [torch.randn(length, HEADS, PLAIN + ROTATED) for length in lengths]
    width = -(-max(lengths) // BLOCK)
    order = np.random.RandomState(seed).permutation(width * len(lengths))
    table = order.reshape(len(lengths), width).astype(np.int64)
    return latents, queries, table


def weights(seed=1):
    torch.manual_seed(seed)
    return HeadWeights(torch.randn(HEADS, PLAIN + VALUE, LATENT) * 0.2, PLAIN)


def attend(latents, queries, table, chunks, form, held):
    """Feed every lane in chunks; returns each lane's outputs."""
    cache = torch.full((int(table.max()) + 1, 1, BLOCK, 1, LATENT + ROTATED), float("nan"))
    out = [[] for _ in latents]
    done = [0] * len(latents)
    while any(at < len(latent) for at, latent in zip(done, latents, strict=True)):
        spans = [
            (lane, done[lane], min(done[lane] + chunk, len(latents[lane])))
            for lane, chunk in enumerate(chunks)
            if done[lane] < len(latents[lane])
        ]
        lane_T = np.concatenate([np.full(stop - start, lane) for lane, start, stop in spans])
        at_T = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
        rows = PagedRows(lane_T.astype(np.int64), at_T.astype(np.int64), table)
        q = torch.cat([queries[lane][start:stop] for lane, start, stop in spans])
        new = torch.cat([latents[lane][start:stop] for lane, start, stop in spans])
        got = latent_attention(q, new, held, cache, rows, form)
        for lane, start, stop in spans:
            out[lane].append(got[: stop - start])
            got, done[lane] = got[stop - start :], stop
    return [torch.cat(each) for each in out]


def expanded(latent, query, form, held):
    both = torch.einsum("tl,hxl->thx", latent[:, :LATENT].double(), held.weight_HXL.double())
    rotated = latent[:, None, LATENT:].double().expand(-1, HEADS, -1)
    keys = torch.cat((both[..., :PLAIN], rotated), -1)
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * form.scale
    count = len(latent)
    future = torch.ones(count, count, dtype=torch.bool).triu(1)
    share = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khv->qhv", share, both[..., PLAIN:])


def test_it_equals_expanding_every_latent(path):
    latents, queries, table = past_and_rows((5, 90, 1, 33))
    form, held = AttentionForm(0.2), weights()
    for lane, got in enumerate(attend(latents, queries, table, (3, 20, 1, 33), form, held)):
        wanted = expanded(latents[lane], queries[lane], form, held)
        torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=1e-4)


def test_a_row_has_the_same_bits_in_any_chunk_and_company(path):
    latents, queries, table = past_and_rows((5, 90, 1, 33))
    form, held = AttentionForm(0.2), weights()
    whole = attend(latents, queries, table, (90, 90, 90, 90), form, held)
    pieces = attend(latents, queries, table, (1, 7, 1, 2), form, held)
    for lane in range(4):
        assert torch.equal(whole[lane], pieces[lane])
        alone = attend([latents[lane]], [queries[lane]], table[lane : lane + 1], (64,), form, held)
        assert torch.equal(alone[0], whole[lane])
