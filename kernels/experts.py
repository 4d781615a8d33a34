"""How are the experts of one layer computed for a ragged set of (row, expert) pairs?

Pure functions on tensors; no process group, no page, no model. A pair's result depends on its row
and its expert only: never on which other pairs are computed with it, in what order, or on which
rank. Two ways give that (each with itself; they agree with each other to rounding): the reference
multiplies blocks of rows that are always equally long (`dense.py`), the C path (`_paged.c`)
computes every dot product in one fixed lane order.

Legend: S slots, H hidden, I inner of an expert, J = 2I, P pairs, N rows, K experts per row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import native
from .dense import linear_reference


@dataclass(frozen=True, slots=True)
class ClampedGate:
    """A gate with limits: (clamp(up) + 1) * g * sigmoid(alpha * g), g = min(gate, limit)."""

    alpha: float
    limit: float

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Both of one shape; returns that shape."""
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Expert weights in slots: one slot is one expert, gate_up, down, then biases if it has any.

    Shapes: gate_up_SJH [S, 2I, H] (gate rows first), down_SHI [S, H, I], gate_up_bias_SJ [S, 2I],
    down_bias_SH [S, H]; all may be strided over S (slots padded to pages), and are contiguous
    within a slot. Without a `clamped` gate the inner value is activation(gate) * up.

    Weights of another dtype than the rows are widened where they are used: with bfloat16 weights
    and float32 rows all arithmetic is float32 (LayerCast, arXiv 2506.09501), and the bits are those
    of float32 weights of the same values, because widening is exact.
    """

    gate_up_SJH: Tensor
    down_SHI: Tensor
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.silu
    activation_name: str = "silu"
    gate_up_bias_SJ: Tensor | None = None
    down_bias_SH: Tensor | None = None
    clamped: ClampedGate | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of all weights of a slot."""
        return self.gate_up_SJH.dtype

    def gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """The inner value of an expert from its two projections."""
        return self.clamped(gate, up) if self.clamped else self.activation(gate) * up


def expert_pairs(
    x_NH: Tensor, row_P: np.ndarray, slot_P: np.ndarray, weights: ExpertWeights
) -> Tensor:
    """Run every pair's expert on its row: y[p] = mlp(x[row_P[p]], slot_P[p]).

    Shapes: x_NH [N, H]; row_P, slot_P int64 [P], any order; returns y_PH [P, H] in pair order.
    """
    if _runs_native(x_NH, weights) and (weights.clamped or weights.activation_name == "silu"):
        return _expert_pairs_native(x_NH, row_P, slot_P, weights)
    return expert_pairs_reference(x_NH, row_P, slot_P, weights)


def _runs_native(x_NH: Tensor, weights: ExpertWeights) -> bool:
    dtype = weights.dtype
    is_known = dtype in (torch.float32, torch.bfloat16)
    return (
        is_known
        and native.fits(x_NH)
        and native.fits(weights.gate_up_SJH, weights.down_SHI, dtype=dtype)
        and x_NH.is_contiguous()
    )


def _expert_pairs_native(
    x_NH: Tensor, row_P: np.ndarray, slot_P: np.ndarray, weights: ExpertWeights
) -> Tensor:
    row_P, slot_P = np.ascontiguousarray(row_P), np.ascontiguousarray(slot_P)
    order_P = np.argsort(slot_P, kind="stable")
    hidden = x_NH.shape[1]
    y_PH = torch.empty((len(row_P), hidden))
    clamped = weights.clamped
    assert native.extension is not None
    native.extension.experts(
        x_NH.data_ptr(),
        (row_P.ctypes.data, slot_P.ctypes.data, order_P.ctypes.data),
        _address(weights.gate_up_SJH),
        _address(weights.down_SHI),
        _address(weights.gate_up_bias_SJ),
        _address(weights.down_bias_SH),
        weights.dtype is torch.bfloat16,
        y_PH.data_ptr(),
        (len(row_P), hidden, weights.down_SHI.shape[2]),
        (clamped.alpha, clamped.limit) if clamped else (0.0, 0.0),
    )
    return y_PH


def _address(per_slot: Tensor | None) -> tuple[int, int]:
    """Where slot 0 begins and how many elements further the next one does; zeros for nothing."""
    return (0, 0) if per_slot is None else (per_slot.data_ptr(), per_slot.stride(0))


def expert_pairs_reference(
    x_NH: Tensor, row_P: np.ndarray, slot_P: np.ndarray, weights: ExpertWeights
) -> Tensor:
    """`expert_pairs` with the tensor library: one padded group of rows per expert."""
    order_P = np.argsort(slot_P, kind="stable")
    slots, counts = np.unique(slot_P[order_P], return_counts=True)
    rows_PH = x_NH[torch.from_numpy(row_P[order_P])]
    sorted_PH = expert_mlp(rows_PH, counts.tolist(), slots.tolist(), weights)
    y_PH = torch.empty_like(sorted_PH)
    y_PH[torch.from_numpy(order_P)] = sorted_PH
    return y_PH


def expert_mlp(x_MH: Tensor, counts: list[int], slots: list[int], weights: ExpertWeights) -> Tensor:
    """Run groups of rows through their experts: rows of group g go through slot slots[g].

    Shapes: x_MH [M, H], sum(counts) == M; returns y_MH [M, H].
    """
    y_MH = torch.empty_like(x_MH)
    start = 0
    for count, slot in zip(counts, slots, strict=True):
        stop = start + count
        y_MH[start:stop] = _one_expert(x_MH[start:stop], slot, weights)
        start = stop
    return y_MH


def _one_expert(rows_GH: Tensor, slot: int, weights: ExpertWeights) -> Tensor:
    linear, dtype = linear_reference, rows_GH.dtype
    gate_up_JH, down_HI = weights.gate_up_SJH[slot].to(dtype), weights.down_SHI[slot].to(dtype)
    inner_GJ = linear(rows_GH, gate_up_JH, _of(weights.gate_up_bias_SJ, slot, dtype))
    gate_GI, up_GI = inner_GJ.chunk(2, dim=-1)
    inner_GI = weights.gate(gate_GI, up_GI)
    return linear(inner_GI, down_HI, _of(weights.down_bias_SH, slot, dtype))


def _of(per_slot: Tensor | None, slot: int, dtype: torch.dtype) -> Tensor | None:
    return None if per_slot is None else per_slot[slot].to(dtype)


def weighted_sum_in_id_order(y_NKH: Tensor, ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Sum a row's expert results with their weights, in ascending expert id, one after another.

    Shapes: y_NKH [N, K, H], ids_NK int64 [N, K], weights_NK [N, K]; returns [N, H].
    The order is the ids', not the router's, so it is the same wherever the results come from.
    """
    if native.fits(y_NKH) and y_NKH.is_contiguous():
        return _weighted_sum_native(y_NKH, ids_NK.contiguous(), weights_NK.float().contiguous())
    return weighted_sum_reference(y_NKH, ids_NK, weights_NK)


def _weighted_sum_native(y_NKH: Tensor, ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
    rows, k, hidden = y_NKH.shape
    out_NH = torch.empty((rows, hidden))
    assert native.extension is not None
    native.extension.sum_in_id_order(
        y_NKH.data_ptr(),
        ids_NK.data_ptr(),
        weights_NK.data_ptr(),
        out_NH.data_ptr(),
        rows,
        k,
        hidden,
    )
    return out_NH


def weighted_sum_reference(y_NKH: Tensor, ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """`weighted_sum_in_id_order` with the tensor library."""
    order_NK = torch.argsort(ids_NK, dim=-1, stable=True)
    weighted_NKH = y_NKH * weights_NK.unsqueeze(-1)
    index_NKH = order_NK.unsqueeze(-1).expand_as(weighted_NKH)
    sorted_NKH = torch.gather(weighted_NKH, 1, index_NKH)
    out_NH = sorted_NKH[:, 0].clone()
    for k in range(1, y_NKH.shape[1]):
        out_NH += sorted_NKH[:, k]
    return out_NH
