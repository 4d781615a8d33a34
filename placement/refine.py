"""With three to five measured rows of a (model, engine, device), how does a prediction improve?

The zero-shot model keeps its shape; what is learned from the few rows is how far its logarithm is
off and how that changes slowly with batch, widths, lengths, precision and engine version: a
Gaussian process over those labels, with fixed scales. Rows to measure are chosen by their labels
alone (each next one farthest from those before), never by how they turned out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rows import Row
from .weigh import Array

ROWS_TO_MEASURE = 5
ROWS_MIN = 8  # a smaller group would be calibrated on more than half of itself


@dataclass(frozen=True, slots=True)
class Scales:
    """Of the logarithm of measured over predicted: offset, slope, bend, reach, noise."""

    offset: float
    slope: float
    bend: float
    reach: float
    noise: float


TPOT_SCALES = Scales(0.5, 0.08, 0.10, 1.0, 0.06)
TTFT_SCALES = Scales(0.7, 0.12, 0.20, 1.0, 0.06)


def labels(rows: Sequence[Row]) -> Array:
    """Labels as numbers of comparable reach, [n, features]."""
    versions = sorted({row.version for row in rows})
    return np.array([_label(row, versions if len(versions) > 1 else []) for row in rows])


def _label(row: Row, versions: Sequence[str]) -> list[float]:
    name = row.precision.name
    layout = row.layout
    return [
        float(np.log2(row.batch * layout.dp)) / 2,
        float(np.log2(layout.tp)),
        float(np.log2(row.input_tokens)) / 1.5,
        float(np.log2(row.output_tokens)) / 3,
        1.5 * ("fp4" in name),
        1.5 * (name == "bf16"),
        1.0 * (layout.ep > 1),
        1.5 * (layout.dp > 1),
        *(1.5 * (row.version == version) for version in versions),
    ]


def choose(features: Array, count: int) -> list[int]:
    """Indices of rows to measure: the most central, then each farthest from the chosen ones."""
    center = features.mean(axis=0)
    chosen = [int(np.argmin(((features - center) ** 2).sum(axis=1)))]
    while len(chosen) < min(count, len(features)):
        gaps = np.min([((features - features[i]) ** 2).sum(axis=1) for i in chosen], axis=0)
        chosen.append(int(np.argmax(gaps)))
    return chosen


def refine(
    features: Array, log_predicted: Array, measured: dict[int, float], scales: Scales
) -> Array:
    """Refined logarithms, [n]; `measured` maps indices of measured rows to seconds."""
    at = list(measured)
    centered = features - features.mean(axis=0)
    off = np.log([measured[i] for i in at]) - log_predicted[at]
    known = _kernel(centered[at], centered[at], scales) + scales.noise**2 * np.eye(len(at))
    shift: Array = _kernel(centered, centered[at], scales) @ np.linalg.solve(known, off)
    return log_predicted + shift


def _kernel(first: Array, second: Array, scales: Scales) -> Array:
    gaps = ((first[:, None, :] - second[None, :, :]) ** 2).sum(axis=-1)
    bend = scales.bend**2 * np.exp(-gaps / 2 / scales.reach**2)
    total: Array = scales.offset**2 + scales.slope**2 * (first @ second.T) + bend
    return total


def refine_groups(
    rows: Sequence[Row], log_predicted: Array, seconds: Array, scales: Scales
) -> tuple[Array, NDArray[np.bool_]]:
    """Every group of rows refined by its own few; returns logarithms and which rows were used."""
    refined, used = log_predicted.copy(), np.zeros(len(rows), dtype=bool)
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    for members in groups.values():
        if len(members) < ROWS_MIN:
            continue
        at = np.array(members)
        features = labels([rows[i] for i in members])
        chosen = choose(features, ROWS_TO_MEASURE)
        used[at[chosen]] = True
        known = {i: float(seconds[at[i]]) for i in chosen}
        refined[at] = refine(features, log_predicted[at], known, scales)
    return refined, used
