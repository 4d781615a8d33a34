"""How many slots should each layer have, when the memory for all of them is given?

A slot more helps a layer with one very hot expert and does nothing for one that is even already.
Every layer is planned with some slots fewer and some more per device; the numbers are then chosen
so that the sum over layers of the largest loads, each in units of its mean, is the least possible
for the given total: exactly, layer after layer, over all ways to spend it.

Legend: L layers, E experts, S choices of slots per device.
"""

from dataclasses import replace

import numpy as np

from . import plan, score
from .layout import Floats, Layout, checked_loads

SPREAD = 2  # slots per device that a layer may have fewer or more than the mean


def layer_budgets(load_LE: Floats, layout: Layout, shares: str = "split") -> list[int]:
    """[L] slots per device of each layer; together at most L times those of the layout."""
    loads = checked_loads(load_LE)
    least = -(-loads.shape[1] // layout.devices)
    choices = [
        s
        for s in range(layout.per_device - SPREAD, layout.per_device + SPREAD + 1)
        if s >= least and s * layout.devices % layout.nodes == 0
    ]
    cost_SL = np.stack([_cost(loads, _with(layout, s), shares) for s in choices])
    return _cheapest(cost_SL, choices, layout.per_device * len(loads))


def _with(layout: Layout, per_device: int) -> Layout:
    return replace(layout, slots=per_device * layout.devices)


def _cost(loads: Floats, layout: Layout, shares: str) -> Floats:
    """[L] largest load in units of the mean."""
    found = plan.plan_layers(loads, layout, plan.fast(layout))
    most = found.split_L if shares == "split" else found.equal_L
    return 1 / score.balance(loads, most, layout)


def _cheapest(cost_SL: Floats, choices: list[int], total: int) -> list[int]:
    """The choice per layer with the least sum of costs among those that spend at most `total`."""
    layers = cost_SL.shape[1]
    best = np.zeros(total + 1)  # of the layers so far, by slots spent at most
    taken = np.zeros((layers, total + 1), dtype=np.int64)
    for layer in range(layers):
        options = np.full((len(choices), total + 1), np.inf)
        for at, slots in enumerate(choices):
            options[at, slots:] = best[: total + 1 - slots] + cost_SL[at, layer]
        taken[layer] = options.argmin(axis=0)  # ties: fewer slots
        best = options.min(axis=0)
    found, left = [], total
    for layer in reversed(range(layers)):
        found.append(choices[taken[layer, left]])
        left -= found[-1]
    return found[::-1]
