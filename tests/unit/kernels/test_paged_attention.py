"""Paged attention against plain softmax attention in float64, for both implementations."""

import numpy as np
import pytest
import torch

from moectl.kernels import attention, native
from moectl.kernels.attention import AttentionForm, PagedRows

NATIVE = pytest.param(
    attention.paged_attention,
    id="native",
    marks=pytest.mark.skipif(native.extension is None, reason="not built"),
)
REFERENCE = pytest.param(attention.paged_attention_reference, id="reference")
BOTH = pytest.mark.parametrize("attend", [NATIVE, REFERENCE])


class History:
    """Lanes with a past in scattered blocks; unwritten cache is NaN."""

    def __init__(self, pasts, chunks, form=(6, 2, 32), block=16):
        torch.manual_seed(0)
        heads, kv_heads, depth = form
        self.lengths = [past + chunk for past, chunk in zip(pasts, chunks, strict=True)]
        self.block, self.kv_heads, self.heads = block, kv_heads, heads
        width = max(-(-length // block) for length in self.lengths)
        order = np.random.RandomState(0).permutation(width * len(pasts))
        table_LW = order.reshape(len(pasts), width).astype(np.int64)
        lanes = [np.full(chunk, lane) for lane, chunk in enumerate(chunks)]
        spans = [np.arange(p, p + c) for p, c in zip(pasts, chunks, strict=True)]
        self.rows = PagedRows(
            np.concatenate(lanes).astype(np.int64), np.concatenate(spans).astype(np.int64), table_LW
        )
        self.keys = [torch.randn(length, kv_heads, depth) for length in self.lengths]
        self.values = [torch.randn(length, kv_heads, depth) for length in self.lengths]
        count = len(self.rows.lane_T)
        self.q = torch.randn(count, heads, depth)
        self.k = torch.cat([k[past:] for k, past in zip(self.keys, pasts, strict=True)])
        self.v = torch.cat([v[past:] for v, past in zip(self.values, pasts, strict=True)])
        self.cache = torch.full((order.size, 2, block, kv_heads, depth), float("nan"))
        for lane, past in enumerate(pasts):
            for position in range(past):
                at = table_LW[lane, position // block], position % block
                self.cache[at[0], 0, at[1]] = self.keys[lane][position]
                self.cache[at[0], 1, at[1]] = self.values[lane][position]

    def expected(self, form):
        out = []
        for row, (lane, position) in enumerate(
            zip(self.rows.lane_T.tolist(), self.rows.position_T.tolist(), strict=True)
        ):
            first = max(0, position - form.window + 1) if form.window else 0
            keys = self.keys[lane][first : position + 1].double()
            values = self.values[lane][first : position + 1].double()
            group = self.heads // self.kv_heads
            for head in range(self.heads):
                scores = keys[:, head // group] @ self.q[row, head].double() * form.scale
                if form.sinks_H is not None:
                    scores = torch.cat([scores, form.sinks_H[head : head + 1].double()])
                weights = torch.softmax(scores, 0)[: keys.shape[0]]
                out.append(weights @ values[:, head // group])
        return torch.stack(out).view(len(self.q), self.heads, -1)


@BOTH
@pytest.mark.parametrize("window", [None, 1, 12, 70])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_equals_plain_attention(attend, window, with_sinks):
    history = History([0, 100, 5, 200, 63, 64], [10, 1, 7, 3, 1, 1])
    form = AttentionForm(32**-0.5, window, torch.randn(6) if with_sinks else None)
    got = attend(history.q, history.k, history.v, history.cache, history.rows, form)
    torch.testing.assert_close(got.double(), history.expected(form), atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize(
    ("heads", "kv_heads", "depth", "block"),
    [(1, 1, 8, 1), (4, 4, 64, 5), (16, 1, 40, 16), (8, 2, 128, 64), (32, 4, 16, 128)],
)
def test_any_shape_of_heads_and_blocks(attend, heads, kv_heads, depth, block):
    history = History([70, 0, 3], [2, 9, 1], (heads, kv_heads, depth), block)
    form = AttentionForm(depth**-0.5)
    got = attend(history.q, history.k, history.v, history.cache, history.rows, form)
    torch.testing.assert_close(got.double(), history.expected(form), atol=1e-5, rtol=1e-5)


@BOTH
def test_pad_rows_write_nothing_and_come_back_as_zeros(attend):
    history = History([4], [2])
    rows = PagedRows(
        np.append(history.rows.lane_T, [-1, -1]),
        np.append(history.rows.position_T, [0, 0]),
        history.rows.table_LW,
    )
    extra = [torch.cat([t, torch.full_like(t[:2], 9.0)]) for t in (history.q, history.k, history.v)]
    got = attend(*extra, history.cache, rows, AttentionForm(0.2))
    assert torch.equal(got[2:], torch.zeros_like(got[2:]))
    torch.testing.assert_close(
        got[:2].double(), history.expected(AttentionForm(0.2)), atol=1e-5, rtol=1e-5
    )
    assert not (history.cache == 9.0).any()


@BOTH
def test_huge_scores_stay_finite(attend):
    history = History([40], [3])
    got = attend(
        history.q * 1e4, history.k, history.v, history.cache, history.rows, AttentionForm(1.0)
    )
    assert torch.isfinite(got).all()


@BOTH
def test_rows_may_be_strided_as_transformers_passes_them(attend):
    history = History([3, 80], [5, 1])
    turned = [
        t.transpose(0, 1).contiguous().transpose(0, 1) for t in (history.q, history.k, history.v)
    ]
    assert not turned[0].is_contiguous()
    form = AttentionForm(0.2)
    got = attend(*turned, history.cache, history.rows, form)
    torch.testing.assert_close(got.double(), history.expected(form), atol=1e-5, rtol=1e-5)


def test_the_compiled_path_is_refused_for_what_it_cannot_run():
    whole = torch.zeros(2, 16)
    assert native.fits(whole) == (native.extension is not None)
    assert not native.fits(whole.double())
    assert not native.fits(torch.zeros(2, 12))
    assert not native.fits(torch.zeros(16, 16).T[:, ::2])
