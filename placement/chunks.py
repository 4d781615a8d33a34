"""How should a long prompt be cut, so that every chunk takes a pipeline the same time?

A chunk of c tokens after a prefix of p costs a c + b c (p + c / 2): products grow with the chunk,
attention with what it meets. Equal chunks leave a pipeline idle, because later ones take longer;
equal times leave only filling and draining. Sizes solve the quadratic exactly, then are rounded to
whole blocks.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """Seconds: `linear` of a token, `quadratic` of a token meeting another, `fixed` of a chunk."""

    linear: float
    quadratic: float
    fixed: float = 0.0

    def seconds(self, prefix: float, chunk: float) -> float:
        """Of one chunk in one stage."""
        met = self.quadratic * chunk * (prefix + chunk / 2)
        return self.fixed + self.linear * chunk + met


def equal_time_chunks(cost: ChunkCost, tokens: int, count: int, block: int = 64) -> tuple[int, ...]:
    """`count` chunks or fewer that sum to `tokens`, of equal time up to one block."""
    if tokens < 1 or count < 1 or block < 1:
        raise ValueError(f"tokens, count and block must be positive: {tokens}, {count}, {block}")
    whole = ChunkCost(cost.linear, cost.quadratic)
    share = whole.seconds(0, tokens) / count
    edges = [0]
    for index in range(1, count):
        # The prefix at which the cost of everything before it is `index` shares.
        exact = _prefix_of(whole, share * index)
        edge = min(tokens, round(exact / block) * block)
        if edge > edges[-1]:
            edges.append(edge)
    if tokens > edges[-1]:
        edges.append(tokens)
    return tuple(after - before for before, after in itertools.pairwise(edges))


def _prefix_of(cost: ChunkCost, seconds: float) -> float:
    if cost.quadratic <= 0:
        return seconds / cost.linear
    root = math.sqrt(cost.linear**2 + 2 * cost.quadratic * seconds)
    return (root - cost.linear) / cost.quadratic


def pipeline_seconds(cost: ChunkCost, chunks: Sequence[int], stages: int) -> float:
    """Until the last chunk leaves the last stage; `cost` is one stage's share of the layers."""
    done = [0.0] * stages
    prefix = 0
    for chunk in chunks:
        took = cost.seconds(prefix, chunk)
        ready = 0.0
        for stage in range(stages):
            ready = max(ready, done[stage]) + took
            done[stage] = ready
        prefix += chunk
    return done[-1]


def bubble(cost: ChunkCost, chunks: Sequence[int], stages: int) -> float:
    """The share of the pipeline's time in which a stage stands idle."""
    prefix, work = 0, 0.0
    for chunk in chunks:
        work += cost.seconds(prefix, chunk)
        prefix += chunk
    return 1 - work / pipeline_seconds(cost, chunks, stages)


def fit_chunk_cost(points: Sequence[tuple[int, int, float]]) -> ChunkCost:
    """The cost that explains measured (prefix, chunk, seconds), by least squares in closed form."""
    import numpy as np

    table = np.array([[c, c * (p + c / 2), 1.0] for p, c, _ in points])
    seconds = np.array([s for _, _, s in points])
    scale = np.abs(table).max(axis=0)
    found, *_ = np.linalg.lstsq(table / scale, seconds, rcond=None)
    linear, quadratic, fixed = (float(v) for v in np.maximum(found / scale, 0.0))
    return ChunkCost(linear, quadratic, fixed)
