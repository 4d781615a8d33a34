"""Where does a transformers model hand over to moectl?

Two functions are registered by name: attention (over paged KV) and experts (through a MoeRunner).
An attention name without a mask function makes transformers build no mask at all. What a forward
pass needs beside its tensors travels as the `moectl` keyword to attention, and through the `Seat`
of each experts module, because experts get no keywords.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...kernels import attention as paged
from .kv import KvPool
from .moe import MoeRunner

ATTENTION = "moectl_paged"
EXPERTS = "moectl_slots"


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass carries beside tensors. `row_count` leaves pad rows out."""

    rows: paged.PagedRows
    kv: KvPool
    moe: MoeRunner
    row_count: int


@dataclass(slots=True)
class Seat:
    """An experts module's place: its MoE layer number, and the forward pass that is running."""

    layer: int
    step: Step | None = field(default=None)


def register() -> None:
    """Make both functions known to transformers; harmless when repeated."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, experts)


def attention(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend over pages. Shapes: q [1, H, T, D], k, v [1, G, T, D]; returns [1, T, H, D]."""
    step: Step = kwargs["moectl"]
    # Some families pass the window, others keep it on their sliding layers only; 0 means off.
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None) or None
    form = paged.AttentionForm(kwargs["scaling"], window, kwargs.get("s_aux"))
    out_THD = paged.paged_attention(
        q[0].transpose(0, 1),
        k[0].transpose(0, 1),
        v[0].transpose(0, 1),
        step.kv.layers[module.layer_idx],
        step.rows,
        form,
    )
    return out_THD.unsqueeze(0), None


def experts(module: Any, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Run routed experts for the real rows; pad rows get zeros and cost nobody anything."""
    seat: Seat = module.moectl_seat
    step = seat.step
    assert step is not None
    rows = step.row_count
    out_NH = step.moe.run(seat.layer, x_TH[:rows], ids_TK[:rows], weights_TK[:rows])
    if rows == x_TH.shape[0]:
        return out_NH
    return torch.nn.functional.pad(out_NH, (0, 0, 0, x_TH.shape[0] - rows))
