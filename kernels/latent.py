"""What does every row attend to when pages hold latents instead of keys and values?

Latent attention (MLA) keeps one compressed vector and one rotated key per token, shared by all
heads. Keys and values would be that vector times a weight of each head's own; instead of expanding
pages, the weight is applied to the query before and to the result after (absorbed), so that a page
is read as it lies: as one KV head whose key is [latent, rotated key] and whose value is its first
part. A row's bits depend on its own position and lane only, as in `attention.py`.

Legend: T rows, H heads, N width of a query's plain part, R of its rotated part, L of the latent,
V of a head's value, W = L + R, B blocks, P block tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import native
from .attention import AttentionForm, PagedRows, paged_attention
from .dense import ROW_FLOOR


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """What expands a latent: weight_HXL [H, N + V, L] contiguous, key rows first."""

    weight_HXL: Tensor
    plain: int  # N

    @property
    def latent(self) -> int:
        """L."""
        return int(self.weight_HXL.shape[2])

    @property
    def value(self) -> int:
        """V."""
        return int(self.weight_HXL.shape[1]) - self.plain


def latent_attention(
    q_THX: Tensor,
    latent_TW: Tensor,
    weights: HeadWeights,
    cache: Tensor,
    rows: PagedRows,
    form: AttentionForm,
) -> Tensor:
    """Write the rows' latents into the pages, then attend.

    Shapes: q_THX [T, H, N + R] (any strides over T and H), latent_TW [T, W], cache [B, 1, P, 1, W];
    returns [T, H, V] contiguous.
    """
    heads = q_THX.shape[1]
    plain, latent = weights.plain, weights.latent
    q_THW = q_THX.new_empty(q_THX.shape[0], heads, latent_TW.shape[1])
    q_THW[..., :latent] = _by_head(q_THX[..., :plain], weights.weight_HXL[:, :plain], True)
    q_THW[..., latent:] = q_THX[..., plain:]
    k_T1W = latent_TW.unsqueeze(1)
    # The value is the key: both "parts" of a block are the same bytes.
    both = cache.expand(-1, 2, -1, -1, -1)
    out_THW = paged_attention(q_THW, k_T1W, k_T1W, both, rows, form)
    return _by_head(out_THW[..., :latent], weights.weight_HXL[:, plain:], False)


def _by_head(x_THD: Tensor, weight_HOD: Tensor, transposed: bool) -> Tensor:
    """Each head's own weight: [T, H, D] times [H, O, D] (or [H, D, O] transposed) to [T, H, O]."""
    if not native.fits(x_THD, weight_HOD) or weight_HOD.stride(1) != weight_HOD.shape[2]:
        return _by_head_reference(x_THD, weight_HOD, transposed)
    rows, heads, depth = x_THD.shape
    outputs = weight_HOD.shape[2] if transposed else weight_HOD.shape[1]
    y_THO = torch.empty(rows, heads, outputs)
    assert native.extension is not None
    native.extension.by_head(
        (x_THD.data_ptr(), x_THD.stride(0), x_THD.stride(1)),
        (weight_HOD.data_ptr(), weight_HOD.stride(0)),
        y_THO.data_ptr(),
        (rows, heads, depth, outputs),
        int(transposed),
    )
    return y_THO


def _by_head_reference(x_THD: Tensor, weight_HOD: Tensor, transposed: bool) -> Tensor:
    rows = x_THD.shape[0]
    x_HTD = x_THD.transpose(0, 1)
    if rows < ROW_FLOOR:
        x_HTD = torch.nn.functional.pad(x_HTD, (0, 0, 0, ROW_FLOOR - rows))
    weight_HDO = weight_HOD if transposed else weight_HOD.transpose(1, 2)
    return torch.matmul(x_HTD, weight_HDO)[:, :rows].transpose(0, 1).contiguous()
