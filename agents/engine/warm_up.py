"""Why is the first step of a rank that joins as fast as its next? It has run one before.

A forked process has computed nothing yet: the GEMM library plans, buffers and page tables come with
the first pass, tens of milliseconds that every rank of the group would wait for. So a joining rank
runs one pass in PREPARE, over rows that belong to nobody: they write no KV and are sent nowhere.
"""

import numpy as np
import torch
from torch import Tensor

from ...kernels.attention import PagedRows
from ...kernels.dense import ROW_FLOOR
from .batch import StepBatch
from .engine import Engine
from .moe import ExpertSlots


def warm_up(engine: Engine, slots: ExpertSlots) -> None:
    """Run one pass of rows that belong to nobody, with this rank's own experts."""
    nobody_T = np.full(ROW_FLOOR, -1, dtype=np.int64)
    zero_T = np.zeros(ROW_FLOOR, dtype=np.int64)
    rows = PagedRows(nobody_T, zero_T, engine.scheduler.table_LW)
    batch = StepBatch(zero_T, rows, zero_T, row_count=0, sampled_count=ROW_FLOOR)
    engine.forward.run(batch, _OwnExperts(slots), engine.kv)


class _OwnExperts:
    """A MoeRunner that computes one expert of this rank in every layer, and gives nothing back."""

    def __init__(self, slots: ExpertSlots) -> None:
        self._slots = slots
        self._one_of = {layer: expert for layer, expert in reversed(sorted(slots.slot_of))}

    def run(self, layer: int, x_NH: Tensor, ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """See MoeRunner.run."""
        if layer in self._one_of:
            row_P = np.arange(ROW_FLOOR, dtype=np.int64)
            expert_P = np.full(ROW_FLOOR, self._one_of[layer], dtype=np.int64)
            x_RH = torch.zeros((ROW_FLOOR, x_NH.shape[1]), dtype=x_NH.dtype)
            self._slots.compute(layer, x_RH, row_P, expert_P)
        return torch.zeros_like(x_NH)
