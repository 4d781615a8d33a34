"""How does a plan become index tensors?

Built once per step with numpy, used by every layer. Rows stand in plan order, padded with rows that
belong to nobody (lane -1) to the floor below which the GEMM library changes its sums.
"""

from dataclasses import dataclass

import numpy as np

from ...kernels.attention import PagedRows
from ...kernels.dense import ROW_FLOOR
from .schedule import StepPlan


@dataclass(frozen=True)
class StepBatch:
    """The inputs of one forward pass.

    Shapes: token_T int64 [T], paged.position_T [T], T >= ROW_FLOOR; rows from `row_count` on are
    padding. sample_S int64 [S], S >= ROW_FLOOR or 0: rows whose logits are wanted, the first
    `sampled_count` for real.
    """

    token_T: np.ndarray
    paged: PagedRows
    sample_S: np.ndarray
    row_count: int
    sampled_count: int


def build_batch(plan: StepPlan, table_LW: np.ndarray) -> StepBatch:
    """Lay the plan's rows end to end."""
    total = max(plan.row_count, ROW_FLOOR)
    counts = np.array([item.count for item in plan.items], dtype=np.int64)
    starts = np.array([item.start for item in plan.items], dtype=np.int64)
    lanes = np.array([item.sequence.lane for item in plan.items], dtype=np.int64)
    ends = np.cumsum(counts)
    token_T = np.zeros(total, dtype=np.int64)
    position_T = np.zeros(total, dtype=np.int64)
    lane_T = np.full(total, -1, dtype=np.int64)
    rows = plan.row_count
    token_T[:rows] = _tokens(plan)
    position_T[:rows] = np.arange(rows) - np.repeat(ends - counts - starts, counts)
    lane_T[:rows] = np.repeat(lanes, counts)
    sampled = ends[[item.samples for item in plan.items]] - 1
    paged = PagedRows(lane_T, position_T, table_LW)
    return StepBatch(token_T, paged, _padded(sampled), rows, len(sampled))


def _tokens(plan: StepPlan) -> list[int]:
    tokens: list[int] = []
    for item in plan.items:
        tokens += item.sequence.tokens[item.start : item.start + item.count]
    return tokens


def _padded(sample_S: np.ndarray) -> np.ndarray:
    """Repeat the first row up to the floor; nothing to sample stays nothing."""
    missing = ROW_FLOOR - len(sample_S)
    if not len(sample_S) or missing <= 0:
        return sample_S
    return np.concatenate([sample_S, np.repeat(sample_S[:1], missing)])
