"""Where does a transformers model hand over to moectl?

Two functions are registered by name: attention (over paged KV) and experts (through a MoeRunner).
An attention name without a mask function makes transformers build no mask at all. What a forward
pass needs beside its tensors travels as the `moectl` keyword to attention, and through the `Seat`
of each experts module, because experts get no keywords. Models with latent attention also get the
step as their `past_key_values`: its `update` is where the latent can be seen.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ...kernels import attention as paged
from ...kernels import latent as latents
from .kv import KvPool
from .moe import MoeRunner

ATTENTION = "moectl_paged"
EXPERTS = "moectl_slots"


class Visitor(Protocol):
    """Who a model is run for: a `Step`, or the probe that asks what the model does."""

    def attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """Shapes: q [1, H, T, D], k, v [1, G, T, D]; returns [1, T, H, D]."""
        ...

    def experts(self, layer: int, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Returns [T, H]."""
        ...


@dataclass(slots=True)
class Step:
    """What one forward pass carries beside tensors. `row_count` leaves pad rows out."""

    rows: paged.PagedRows
    kv: KvPool
    moe: MoeRunner
    row_count: int
    _latent_TW: Tensor | None = field(default=None, init=False)

    def attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """See Visitor.attend."""
        form = paged.AttentionForm(
            kwargs["scaling"], window_of(module, kwargs), kwargs.get("s_aux")
        )
        cache, q_THD = self.kv.layers[module.layer_idx], q[0].transpose(0, 1)
        if self._latent_TW is not None:
            latent_TW, self._latent_TW = self._latent_TW, None
            weights = _head_weights(module)
            out_THD = latents.latent_attention(q_THD, latent_TW, weights, cache, self.rows, form)
        else:
            k_TGD, v_TGD = k[0].transpose(0, 1), v[0].transpose(0, 1)
            out_THD = paged.paged_attention(q_THD, k_TGD, v_TGD, cache, self.rows, form)
        return out_THD.unsqueeze(0)

    def update(self, plain: Tensor, rotated: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Latent attention only: keep the new rows' latents for `attend`.

        Shapes: plain [1, 1, T, L], rotated [1, 1, T, R]; returns the first row of both, because
        the model expands what it gets back, and nobody will look at it.
        """
        self._latent_TW = torch.cat((plain[0, 0], rotated[0, 0]), dim=-1)
        return plain[:, :, :1], rotated[:, :, :1]

    def experts(self, layer: int, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """See Visitor.experts. Pad rows get zeros and cost nobody anything."""
        rows = self.row_count
        out_NH = self.moe.run(layer, x_TH[:rows], ids_TK[:rows], weights_TK[:rows])
        if rows == x_TH.shape[0]:
            return out_NH
        return torch.nn.functional.pad(out_NH, (0, 0, 0, x_TH.shape[0] - rows))


@dataclass(slots=True)
class Seat:
    """An experts module's place: its MoE layer number, and the forward pass that is running."""

    layer: int
    step: Visitor | None = field(default=None)


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
    """The registered attention: whoever the model runs for attends."""
    visitor: Visitor = kwargs["moectl"]
    return visitor.attend(module, q, k, v, kwargs), None


def experts(module: Any, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The registered experts: whoever the model runs for computes them."""
    seat: Seat = module.moectl_seat
    assert seat.step is not None
    return seat.step.experts(seat.layer, x_TH, ids_TK, weights_TK)


def window_of(module: Any, kwargs: dict[str, Any]) -> int | None:
    """How many positions a layer sees; None for all of them.

    What a family passes counts, None too: some keep the number on every layer and pass it on the
    sliding ones. Others pass nothing and have it on their sliding layers only. 0 means off.
    """
    if "sliding_window" in kwargs:
        return kwargs["sliding_window"] or None
    return getattr(module, "sliding_window", None) or None


def is_latent(module: Any) -> bool:
    """Whether an attention module compresses keys and values and can say how it expands them."""
    return hasattr(module, "expand_kv") and hasattr(module, "kv_b_proj")


def _head_weights(module: Any) -> latents.HeadWeights:
    weight = module.kv_b_proj.weight
    heads = weight.shape[0] // (module.qk_nope_head_dim + module.v_head_dim)
    return latents.HeadWeights(weight.view(heads, -1, weight.shape[1]), module.qk_nope_head_dim)
