"""What does every row of a ragged batch attend to, when keys and values lie in pages?

A batch is rows of many requests laid end to end. Each row writes its key and value at its position
in its lane's blocks, then attends to its lane's positions 0..own. Causality follows from positions
alone; nothing past a row's own position is read, so unwritten pages may hold anything, NaN too.

A row's result depends on its own position and lane only, bit for bit, never on the batch, the
chunking or the blocks: positions are walked in tiles of 64 from position 0 with an online softmax.
Two implementations, each bit-stable with itself: `_paged.c`, and the tensor-library reference.

Legend: T rows, H query heads, G KV heads, D head width, W table width, B blocks, P block tokens,
C = 2 (keys, values), L lanes, Q rows of one segment, M query rows per KV head.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from . import native
from .dense import ROW_FLOOR

TILE = 64  # as in _paged.c; a power of two well above any block, small enough to stay in L1
_NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class PagedRows:
    """Where the rows of one step lie. Built once per step, used by every layer.

    Shapes: lane_T, position_T int64 [T] (lane -1 is a pad row: neither written nor attended);
    table_LW int64 [L, W], C-contiguous: the block number of each lane's w-th block.
    Rows of one lane stand together in ascending position.
    """

    lane_T: np.ndarray
    position_T: np.ndarray
    table_LW: np.ndarray

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """[start, stop) of each run of rows of one lane, pad rows left out."""
        edges = np.flatnonzero(np.diff(self.lane_T)) + 1
        bounds = [0, *edges.tolist(), len(self.lane_T)]
        return [
            (start, stop)
            for start, stop in pairwise(bounds)
            if start < stop and self.lane_T[start] >= 0
        ]


@dataclass(frozen=True, slots=True)
class AttentionForm:
    """What a layer's attention looks like beside its tensors. `window` counts visible positions."""

    scale: float
    window: int | None = None
    sinks_H: Tensor | None = None


def paged_attention(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cache: Tensor, rows: PagedRows, form: AttentionForm
) -> Tensor:
    """Write the rows' keys and values into the pages, then attend.

    Shapes: q_THD [T, H, D], k_TGD, v_TGD [T, G, D] (any strides), cache [B, 2, P, G, D] (a layer's
    view of the blocks, any stride over B); returns [T, H, D] contiguous, zeros for pad rows.
    """
    if native.fits(q_THD, k_TGD, v_TGD, cache) and _group_fits(q_THD, k_TGD):
        return _native(q_THD, k_TGD, v_TGD, cache, rows, form)
    return paged_attention_reference(q_THD, k_TGD, v_TGD, cache, rows, form)


def _group_fits(q_THD: Tensor, k_TGD: Tensor) -> bool:
    return q_THD.shape[1] <= native.MAX_GROUP * k_TGD.shape[1]


def _native(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cache: Tensor, rows: PagedRows, form: AttentionForm
) -> Tensor:
    count_T, heads, depth = q_THD.shape
    out_THD = torch.empty((count_T, heads, depth))
    sinks = None if form.sinks_H is None else form.sinks_H.float().contiguous()
    assert native.extension is not None
    native.extension.attend(
        (q_THD.data_ptr(), q_THD.stride(0), q_THD.stride(1)),
        (k_TGD.data_ptr(), k_TGD.stride(0), k_TGD.stride(1)),
        (v_TGD.data_ptr(), v_TGD.stride(0), v_TGD.stride(1)),
        out_THD.data_ptr(),
        (cache.data_ptr(), cache.stride(0), cache.stride(1)),
        (rows.table_LW.ctypes.data, rows.table_LW.shape[1]),
        (rows.lane_T.ctypes.data, rows.position_T.ctypes.data),
        0 if sinks is None else sinks.data_ptr(),
        (count_T, heads, k_TGD.shape[1], depth, cache.shape[2], form.window or 0),
        form.scale,
    )
    return out_THD


def paged_attention_reference(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cache: Tensor, rows: PagedRows, form: AttentionForm
) -> Tensor:
    """`paged_attention` with the tensor library, one segment at a time; any dtype and device."""
    _write(k_TGD, v_TGD, cache, rows)
    out_THD = torch.zeros(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    for start, stop in rows.segments:
        last = int(rows.position_T[stop - 1])
        blocks_W = rows.table_LW[rows.lane_T[start], : last // cache.shape[2] + 1]
        position_Q = torch.from_numpy(rows.position_T[start:stop]).to(q_THD.device)
        out_THD[start:stop] = _attend_segment(
            q_THD[start:stop], cache[torch.from_numpy(blocks_W)], position_Q, form
        )
    return out_THD


def _write(k_TGD: Tensor, v_TGD: Tensor, cache: Tensor, rows: PagedRows) -> None:
    real = np.flatnonzero(rows.lane_T >= 0)
    position = rows.position_T[real]
    block = torch.from_numpy(rows.table_LW[rows.lane_T[real], position // cache.shape[2]])
    within = torch.from_numpy(position % cache.shape[2])
    index = torch.from_numpy(real)
    shares = cache.stride(1) == 0  # keys and values are the same bytes: see latent.py
    for part, new_TGD in enumerate((k_TGD,) if shares else (k_TGD, v_TGD)):
        cache[:, part][block, within] = new_TGD[index]


def _attend_segment(
    q_QHD: Tensor, blocks_WCPGD: Tensor, position_Q: Tensor, form: AttentionForm
) -> Tensor:
    """Online softmax over tiles from position 0; rows padded to the GEMM's floor."""
    rows, heads, depth = q_QHD.shape
    kv_heads = blocks_WCPGD.shape[3]
    padded = max(rows, ROW_FLOOR)
    position_Q = torch.nn.functional.pad(position_Q, (0, padded - rows), value=int(position_Q[-1]))
    q_QHD = torch.nn.functional.pad(q_QHD, (0, 0, 0, 0, 0, padded - rows))
    q_GMD = q_QHD.view(padded, kv_heads, -1, depth).permute(1, 0, 2, 3).reshape(kv_heads, -1, depth)
    position_M = position_Q.repeat_interleave(heads // kv_heads)
    top_GM1 = torch.full((*q_GMD.shape[:2], 1), _NEGATIVE_INFINITY, device=q_GMD.device)
    total_GM1 = torch.zeros_like(top_GM1)
    acc_GMD = torch.zeros(q_GMD.shape, device=q_GMD.device)
    keys_XGD, values_XGD = _tiles(blocks_WCPGD, int(position_Q[-1]) + 1)
    for base in range(0, keys_XGD.shape[0], TILE):
        hidden_MX = _hidden(position_M, base, form.window)
        score_GMX = torch.matmul(q_GMD, keys_XGD[base : base + TILE].permute(1, 2, 0)).float()
        score_GMX = (score_GMX * form.scale).masked_fill(hidden_MX, _NEGATIVE_INFINITY)
        peak_GM1 = torch.maximum(top_GM1, score_GMX.amax(-1, keepdim=True))
        anchor_GM1 = peak_GM1.masked_fill(peak_GM1 == _NEGATIVE_INFINITY, 0.0)
        weight_GMX = torch.exp(score_GMX - anchor_GM1)
        fade_GM1 = torch.exp(top_GM1 - anchor_GM1)
        total_GM1 = total_GM1 * fade_GM1 + weight_GMX.sum(-1, keepdim=True)
        tile_GXD = values_XGD[base : base + TILE].permute(1, 0, 2)
        acc_GMD = acc_GMD * fade_GM1 + torch.matmul(weight_GMX.to(tile_GXD.dtype), tile_GXD).float()
        top_GM1 = peak_GM1
    out_GMD = _finish(acc_GMD, top_GM1, total_GM1, form, padded)
    out_QHD = out_GMD.view(kv_heads, padded, -1, depth).permute(1, 0, 2, 3)
    return out_QHD.reshape(padded, heads, depth)[:rows].to(q_QHD.dtype)


def _tiles(blocks_WCPGD: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values of positions 0.., whole tiles; what no row may see is zero, never NaN."""
    _, _, _, kv_heads, depth = blocks_WCPGD.shape
    pad = -length % TILE
    both = []
    for part in range(2):
        flat_XGD = blocks_WCPGD[:, part].reshape(-1, kv_heads, depth)[:length]
        both.append(torch.nn.functional.pad(flat_XGD, (0, 0, 0, 0, 0, pad)))
    return both[0], both[1]


def _hidden(position_M: Tensor, base: int, window: int | None) -> Tensor:
    """True where a position of the tile is invisible to a row."""
    position_X = torch.arange(base, base + TILE, device=position_M.device)
    hidden_MX = position_X[None, :] > position_M[:, None]
    if window:
        hidden_MX |= position_X[None, :] <= position_M[:, None] - window
    return hidden_MX


def _finish(
    acc_GMD: Tensor, top_GM1: Tensor, total_GM1: Tensor, form: AttentionForm, rows: int
) -> Tensor:
    """Divide by the sum; a sink is one more softmax column without a value."""
    if form.sinks_H is None:
        return acc_GMD / total_GM1
    kv_heads = acc_GMD.shape[0]
    sink_GM1 = form.sinks_H.float().view(kv_heads, 1, -1).expand(-1, rows, -1)
    sink_GM1 = sink_GM1.reshape(kv_heads, -1, 1)
    peak_GM1 = torch.maximum(top_GM1, sink_GM1)
    fade_GM1 = torch.exp(top_GM1 - peak_GM1)
    total_GM1 = total_GM1 * fade_GM1 + torch.exp(sink_GM1 - peak_GM1)
    return acc_GMD * fade_GM1 / total_GM1
