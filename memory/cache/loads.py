"""How unevenly are a model's experts used, by the summed loads of the SGLang recorder?

Loads are counts [layers, experts] without any order in time: they say what is popular, not what
comes next, so no cache can be replayed on them. Pure.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...core.errors import RefusedError


@dataclass(frozen=True, slots=True)
class LoadStats:
    """Of the layers that have experts at all."""

    layers: int
    experts: int
    dense_layers: int
    tokens_k: int  # routed (token, expert) pairs, all layers
    max_over_mean: tuple[float, float]  # least and largest layer
    top_tenth_share: tuple[float, float]  # of the loads, by the most used tenth of experts


def read_loads(path: Path) -> npt.NDArray[np.int64]:
    """[layers, experts] counts; RefusedError when the file has none."""
    try:
        counts = np.asarray(json.loads(path.read_text(encoding="utf-8"))["logical_count"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RefusedError(f"{path}: no logical_count [layers, experts]: {error}") from error
    if counts.ndim == 3:  # several recorded periods
        counts = counts.sum(axis=0)
    if counts.ndim != 2 or counts.dtype.kind not in "iuf" or (counts < 0).any():
        raise RefusedError(f"{path}: logical_count has shape {list(counts.shape)}, not two axes")
    return counts.astype(np.int64)


def load_stats(counts: npt.NDArray[np.int64]) -> LoadStats:
    """What stands out in the loads."""
    routed = counts[counts.sum(axis=1) > 0]
    if not len(routed):
        raise RefusedError("all loads are zero")
    uneven = routed.max(axis=1) / routed.mean(axis=1)
    tenth = max(1, round(routed.shape[1] / 10))
    top = np.sort(routed, axis=1)[:, ::-1][:, :tenth].sum(axis=1) / routed.sum(axis=1)
    return LoadStats(
        layers=len(routed),
        experts=int(counts.shape[1]),
        dense_layers=len(counts) - len(routed),
        tokens_k=int(routed.sum()),
        max_over_mean=(float(uneven.min()), float(uneven.max())),
        top_tenth_share=(float(top.min()), float(top.max())),
    )
