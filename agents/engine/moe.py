"""Who computes the routed experts of a forward pass, and where do their weights lie?

The model's experts modules own no parameter: they hand rows, expert ids and weights to a
`MoeRunner`. `LocalMoe` computes all of them from this rank's slots; the distributed runner
(dispatch.py) sends rows to the ranks that own the experts and calls `ExpertSlots.compute` there.
Both must give the same bits for a row, whatever the width and the other rows.

`layer` counts MoE layers from 0 (as `core.plan.Placement.owners` does), never model layers.
Legend: N rows, K experts per row, P pairs, H hidden, S slots, L MoE layers, E experts.
"""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...core.errors import EngineError
from ...kernels import experts as expert_kernels
from .forms import ExpertForm


class MoeRunner(Protocol):
    """Computes the routed experts of one MoE layer for the rows of this rank.

    Called exactly once per MoE layer, in layer order, in every forward pass, also with N = 0 (a
    rank without work keeps step with the others). Any exception aborts the step, which can then be
    run again.
    """

    def run(self, layer: int, x_NH: Tensor, ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Return out_NH [N, H]: the id-ordered weighted sum of each row's experts.

        Shapes: x_NH [N, H] contiguous, ids_NK int64 [N, K], weights_NK [N, K] of x's dtype. Ids are
        never the "no expert" sentinel: pad rows are left out by the forward pass.
        """
        ...


class ExpertSlots:
    """This rank's expert weights: slot tensors and the slot of each (layer, expert). Immutable.

    A new epoch makes a new object over its own window; the flip is the change of one reference.
    """

    def __init__(
        self,
        weights: expert_kernels.ExpertWeights,
        slot_of: Mapping[tuple[int, int], int],
        layers: int,
        experts: int,
    ) -> None:
        self.weights = weights
        self.slot_of = dict(slot_of)
        self._table_LE = np.full((layers, experts), -1, dtype=np.int64)
        for (layer, expert), slot in self.slot_of.items():
            self._table_LE[layer, expert] = slot

    @classmethod
    def over(
        cls,
        flat: Tensor,
        slot_elements: int,
        shapes: Mapping[str, tuple[int, ...]],
        slot_of: Mapping[tuple[int, int], int],
        extent: tuple[int, int],
        form: ExpertForm | None = None,
    ) -> "ExpertSlots":
        """Slots over one flat tensor (a window's view): slot s starts at element s * slot_elements.

        `shapes` is `model.expert_tensor_shapes(template)`: {"gate_up": (2I, H), "down": (H, I)} and
        biases if any, in the order in which they stand in a slot. `extent` is (layers, experts).
        """
        count, at = flat.numel() // slot_elements, 0
        views: dict[str, Tensor] = {}
        for name, dims in shapes.items():
            strides = (slot_elements, dims[1], 1) if len(dims) == 2 else (slot_elements, 1)
            views[name] = flat.as_strided((count, *dims), strides, flat.storage_offset() + at)
            at += math.prod(dims)
        if at > slot_elements:
            raise EngineError(f"a slot of {slot_elements} elements is too small for {dict(shapes)}")
        return cls(expert_weights(views, form), slot_of, *extent)

    def compute(self, layer: int, x_NH: Tensor, row_P: np.ndarray, expert_P: np.ndarray) -> Tensor:
        """Run expert expert_P[p] of a layer on row x_NH[row_P[p]] for every pair.

        Shapes: x_NH [N, H]; row_P, expert_P int64 [P], any order; returns [P, H] in pair order.
        Raises: EngineError when an expert has no slot here.
        """
        slot_P = self._table_LE[layer][expert_P]
        if slot_P.size and slot_P.min() < 0:
            missing = sorted(set(expert_P[slot_P < 0].tolist()))
            raise EngineError(f"layer {layer}: experts {missing} are not on this rank")
        return expert_kernels.expert_pairs(x_NH, row_P, slot_P, self.weights)


class LocalMoe:
    """A MoeRunner for one rank that holds every expert (width 1, and tests)."""

    def __init__(self, slots: ExpertSlots) -> None:
        self.slots = slots

    def run(self, layer: int, x_NH: Tensor, ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """See MoeRunner.run."""
        count_N, count_K = ids_NK.shape
        if count_N == 0:
            return torch.zeros_like(x_NH)
        row_P = np.repeat(np.arange(count_N, dtype=np.int64), count_K)
        y_PH = self.slots.compute(layer, x_NH, row_P, ids_NK.reshape(-1).numpy())
        y_NKH = y_PH.view(count_N, count_K, -1)
        return expert_kernels.weighted_sum_in_id_order(y_NKH, ids_NK, weights_NK)


def expert_weights(
    views: Mapping[str, Tensor], form: ExpertForm | None = None
) -> expert_kernels.ExpertWeights:
    """What the kernels need, from each tensor's view over all slots, by the names of `form`."""
    name = form.activation if form is not None else "silu"
    clamped = form.clamped if form is not None else None
    return expert_kernels.ExpertWeights(
        views["gate_up"],
        views["down"],
        activation_function("silu" if clamped else name),
        name,
        views.get("gate_up_bias"),
        views.get("down_bias"),
        clamped,
    )


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The activation module of a config's `hidden_act`."""
    from transformers.activations import ACT2FN

    function: Callable[[Tensor], Tensor] = ACT2FN[name]
    return function
