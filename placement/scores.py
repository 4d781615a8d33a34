"""How good are the predictions on rows that no fit has seen?

Folds leave out a whole model (R1 and V3 are one: they share a shape and some measurements) or a
whole device. Beside errors stand what a person feels: the order of layouts in a group, and the
measured throughput of the one that would have been chosen. Pure: rows in, numbers out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .constants import Constants
from .fit import Evidence, fit, group_weights
from .refine import TPOT_SCALES, TTFT_SCALES, refine_groups
from .rows import LeftOut, Row
from .weigh import Array, columns, decode_terms, select, token_seconds

GROUP_MIN = 4  # a rank correlation of fewer says nothing
CENTERS = tuple(0.70 + 0.02 * step for step in range(16))


@dataclass(frozen=True, slots=True)
class Believed:
    """Rows to score with their columns; `has_ttft` is false where only TPOT counts."""

    rows: tuple[Row, ...]
    evidence: Evidence
    has_ttft: Array


@dataclass(frozen=True, slots=True)
class Score:
    """Errors as fractions; `per` holds the same by fold: name -> (rows, TPOT, TTFT)."""

    tpot_mape: float
    ttft_mape: float
    spearman: float
    layout_score: float
    groups: int
    rows: int
    per: dict[str, tuple[int, float, float]]


def gather(rows: Sequence[Row], left: Sequence[LeftOut]) -> Believed:
    """Evidence of believed rows; `left` takes away first-token times of some."""
    no_ttft = {item.line for item in left if item.what == "ttft"}
    has = np.array([0.0 if row.line in no_ttft else 1.0 for row in rows])
    weights = group_weights([row.group for row in rows])
    evidence = Evidence(
        columns([row.point for row in rows]),
        np.array([row.tpot_s for row in rows]),
        np.array([row.ttft_s for row in rows]),
        weights,
        weights * has,
    )
    return Believed(tuple(rows), evidence, has)


def _subset(believed: Believed, mask: Array) -> Believed:
    keep = mask.astype(bool)
    e = believed.evidence
    part = Evidence(
        select(e.table, keep), e.tpot[keep], e.ttft[keep], e.tpot_weight[keep], e.ttft_weight[keep]
    )
    rows = tuple(row for row, kept in zip(believed.rows, keep, strict=True) if kept)
    return Believed(rows, part, believed.has_ttft[keep])


Key = Callable[[Row], str]


def by_model(row: Row) -> str:
    """The fold of a row when whole models are left out."""
    return row.model


def by_device(row: Row) -> str:
    """The fold of a row when whole devices are left out."""
    return row.device


def fit_centered(believed: Believed) -> Constants:
    """A fit whose first-token center was chosen on inner folds of the same rows.

    Rows of one model have no inner folds: their fit stays as it is.
    """
    constants = fit(believed.evidence)
    if len({by_model(row) for row in believed.rows}) < 2:
        return constants
    _, log_ttft = _folded(believed, by_model, lambda part: fit(part.evidence, constants))
    keep = believed.has_ttft > 0
    gap = log_ttft[keep] - np.log(believed.evidence.ttft[keep])
    errors = [float(np.mean(np.abs(np.expm1(gap + np.log(center))))) for center in CENTERS]
    center = CENTERS[int(np.argmin(errors))]
    return Constants({**constants.values, "first_token_center": center})


def _folded(
    believed: Believed, key: Key, make: Callable[[Believed], Constants]
) -> tuple[Array, Array]:
    """Logarithms of TPOT and TTFT, each row predicted by a fit that saw nothing of its fold."""
    names = np.array([key(row) for row in believed.rows])
    tpot, ttft = np.zeros(len(names)), np.zeros(len(names))
    for name in sorted(set(names)):
        out = names == name
        constants = make(_subset(believed, ~out))
        first, second = token_seconds(constants, select(believed.evidence.table, out))
        tpot[out], ttft[out] = np.log(first), np.log(second)
    return tpot, ttft


def folded(believed: Believed, key: Key) -> tuple[Array, Array]:
    """As above with the centered fit: what a person with other models' rows would predict."""
    return _folded(believed, key, fit_centered)


def roofline(believed: Believed) -> Array:
    """The naive baseline: logarithms of weights and cache over 0.8 of the bandwidth, [n]."""
    seconds = []
    for row in believed.rows:
        terms = decode_terms(row.point)
        seconds.append((terms.linear_read + terms.expert_read + terms.cache_read) / 0.8)
    return np.log(np.array(seconds))


def score(believed: Believed, tpot: Array, ttft: Array, key: Key) -> Score:
    """Scores of predictions (logarithms)."""
    e, rows = believed.evidence, believed.rows
    first = np.abs(np.expm1(tpot - np.log(e.tpot)))
    second = np.abs(np.expm1(ttft - np.log(e.ttft)))
    has = believed.has_ttft > 0
    per = {}
    for name in sorted({key(row) for row in rows}):
        at = np.array([key(row) == name for row in rows])
        inner = second[at & has]
        per[name] = (
            int(at.sum()),
            float(first[at].mean()),
            float(inner.mean()) if len(inner) else 0.0,
        )
    order, chosen, groups = _groups(rows, tpot, e.tpot)
    return Score(
        float(first.mean()), float(second[has].mean()), order, chosen, groups, len(rows), per
    )


def refined_score(believed: Believed, tpot: Array, ttft: Array, key: Key) -> Score:
    """Scores after each (model, engine, device) had five of its rows, on the others."""
    e = believed.evidence
    new_tpot, used = refine_groups(believed.rows, tpot, e.tpot, TPOT_SCALES)
    at = np.flatnonzero(believed.has_ttft > 0)
    timed = [believed.rows[i] for i in at]
    inner, used_ttft = refine_groups(timed, ttft[at], e.ttft[at], TTFT_SCALES)
    new_ttft = ttft.copy()
    new_ttft[at] = inner
    has = believed.has_ttft > 0
    has[at[used_ttft]] = False
    rest = Believed(believed.rows, believed.evidence, has.astype(float))
    whole = score(rest, new_tpot, new_ttft, key)
    free = _subset(rest, (~used).astype(float))
    errors = score(free, new_tpot[~used], new_ttft[~used], key)
    return Score(
        errors.tpot_mape,
        whole.ttft_mape,
        errors.spearman,
        errors.layout_score,
        errors.groups,
        errors.rows,
        errors.per,
    )


def _groups(rows: Sequence[Row], tpot: Array, seconds: Array) -> tuple[float, float, int]:
    """Mean rank correlation, mean share of the best throughput, and how many groups."""
    members: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        key = (*row.group, row.precision.name, row.input_tokens, row.output_tokens)
        members.setdefault(key, []).append(index)
    orders, shares = [], []
    for found in members.values():
        if len(found) < GROUP_MIN:
            continue
        at = np.array(found)
        load = np.array([rows[i].batch * rows[i].layout.dp / rows[i].layout.devices for i in found])
        orders.append(spearman(tpot[at], seconds[at]))
        measured = load / seconds[at]
        shares.append(float(measured[np.argmax(load / np.exp(tpot[at]))] / measured.max()))
    if not orders:
        return 0.0, 0.0, 0
    return float(np.mean(orders)), float(np.mean(shares)), len(orders)


def spearman(first: Array, second: Array) -> float:
    """Rank correlation; ties share their mean rank."""
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size else 0.0


def _ranks(values: Array) -> Array:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    for value in np.unique(values):
        same = values == value
        ranks[same] = ranks[same].mean()
    return ranks
