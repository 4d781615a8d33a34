"""Which constants explain measured rows best? A damped least-squares fit with priors.

Residuals are relative errors (over-predictions count as they do in the mean absolute percentage
error), softened so that a stray row cannot pull, beside the distance of every logarithm from its
prior. Groups of rows weigh by the square root of their size: a campaign of a hundred rows is not
a hundred times as true as one of ten. Numpy alone; a thousand rows take under a second.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .constants import Constants, parameter_names, prior_of
from .weigh import Array, Columns, token_seconds

TPOT_SCALE, TTFT_SCALE = 0.12, 0.25  # the errors that are thought normal
Residuals = Callable[[Array], Array]
STEPS_MAX = 40
DIFFERENCE = 1e-4
OVER_MAX = 3.0  # logarithms beyond this are equally absurd


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measured points: terms, seconds, and the weight of each row (0 = not used)."""

    table: Columns
    tpot: Array
    ttft: Array
    tpot_weight: Array
    ttft_weight: Array


def group_weights(groups: Sequence[object]) -> Array:
    """Weights that make a group count with the root of its size; their mean is 1."""
    counts: dict[object, int] = {}
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    weights = np.array([counts[group] ** -0.5 for group in groups])
    mean: Array = weights / weights.mean() if len(weights) else weights
    return mean


def fit(evidence: Evidence, start: Constants | None = None) -> Constants:
    """The constants of the highest posterior; a `start` near them saves most of the steps."""
    names = parameter_names()
    prior = np.array([prior_of(name) for name in names])
    center, sigma = prior[:, 0], prior[:, 1]

    def residuals(theta: Array) -> Array:
        return np.concatenate([_errors(names, theta, evidence), (theta - center) / sigma])

    first = center.copy()
    if start is not None:
        first = np.array([math.log(start.values[name]) for name in names])
    theta = _descend(residuals, first)
    return _constants(names, theta)


def _constants(names: Sequence[str], theta: Array) -> Constants:
    return Constants(dict(zip(names, (math.exp(value) for value in theta), strict=True)))


def _errors(names: Sequence[str], theta: Array, evidence: Evidence) -> Array:
    tpot, ttft = token_seconds(_constants(names, theta), evidence.table)
    first = _relative(tpot, evidence.tpot) * evidence.tpot_weight / TPOT_SCALE
    second = _relative(ttft, evidence.ttft) * evidence.ttft_weight / TTFT_SCALE
    raw = np.concatenate([first, second])
    # Soft absolute value: quadratic near zero, linear far away.
    soft: Array = np.sign(raw) * np.sqrt(2 * (np.sqrt(1 + raw * raw) - 1))
    return soft


def _relative(predicted: Array, measured: Array) -> Array:
    log = np.log(predicted) - np.log(measured)
    error: Array = np.where(log > 0, np.expm1(np.minimum(log, OVER_MAX)), log)
    return error


def _descend(residuals: Residuals, theta: Array) -> Array:
    """Levenberg and Marquardt's method with differences."""
    damping, now = 1e-2, residuals(theta)
    cost = float(now @ now)
    for _ in range(STEPS_MAX):
        slopes = _slopes(residuals, theta, now)
        curve, slope = slopes.T @ slopes, slopes.T @ now
        for _ in range(6):
            step = np.linalg.solve(curve + damping * np.diag(np.diag(curve)), -slope)
            then = residuals(theta + step)
            if float(then @ then) < cost:
                break
            damping *= 4
        else:
            return theta
        gained, theta, now = cost - float(then @ then), theta + step, then
        cost, damping = cost - gained, max(damping / 3, 1e-6)
        if gained < 1e-4 * cost:
            return theta
    return theta


def _slopes(residuals: Residuals, theta: Array, now: Array) -> Array:
    slopes = np.empty((len(now), len(theta)))
    for index in range(len(theta)):
        moved = theta.copy()
        moved[index] += DIFFERENCE
        slopes[:, index] = (residuals(moved) - now) / DIFFERENCE
    return slopes
