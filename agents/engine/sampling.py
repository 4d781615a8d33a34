"""Which token comes next, given logits?

The draw for token i of a request is a function of its logits, its seed and i alone: a counter-based
generator keyed by (seed, i) gives one number in [0, 1), and the inverse of the cumulative
distribution in float64 gives the token. No state, so a replay on another rank draws the same.
Filters apply in the order temperature, top-k, top-p; ties are broken by the lower token id.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .request import Sampling

_MASK_64 = (1 << 64) - 1


def draw(logits_SV: Tensor, plans: Sequence[tuple[Sampling, int]]) -> list[int]:
    """One token per row. `plans[s]` is the row's sampling and the index of the token to draw.

    Shapes: logits_SV [S', V] with S' >= len(plans); further rows are ignored.
    """
    if not plans:
        return []
    tokens = torch.argmax(logits_SV[: len(plans)], dim=-1).tolist()
    for row, (sampling, index) in enumerate(plans):
        if sampling.temperature > 0.0:
            tokens[row] = draw_one(logits_SV[row].double().cpu().numpy(), sampling, index)
    return tokens


def draw_one(logits_V: np.ndarray, sampling: Sampling, index: int) -> int:
    """A sampled token from float64 logits [V]."""
    scaled_V = (logits_V - logits_V.max()) / sampling.temperature
    weight_V = np.exp(scaled_V)
    ids_C = _candidates(weight_V, sampling)
    cumulative_C = np.cumsum(weight_V if ids_C is None else weight_V[ids_C])
    point = uniform(sampling.seed, index) * cumulative_C[-1]
    at = min(int(np.searchsorted(cumulative_C, point, side="right")), len(cumulative_C) - 1)
    return at if ids_C is None else int(ids_C[at])


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) for token `index` under `seed`."""
    generator = np.random.Philox(key=seed & _MASK_64, counter=index)
    return float(np.random.Generator(generator).random())


def _candidates(weight_V: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    """Token ids that pass the filters, likeliest first; None when no filter is on."""
    limit = len(weight_V) if sampling.top_k <= 0 else min(sampling.top_k, len(weight_V))
    if limit == len(weight_V) and sampling.top_p >= 1.0:
        return None
    ids_C = np.argsort(-weight_V, kind="stable")[:limit]
    if sampling.top_p < 1.0:
        cumulative_C = np.cumsum(weight_V[ids_C])
        # The smallest set whose share reaches top_p; never empty.
        keep = int(np.searchsorted(cumulative_C, sampling.top_p * cumulative_C[-1], side="left"))
        ids_C = ids_C[: keep + 1]
    return ids_C
