"""What do the policies of published systems keep, re-implemented on one interface?

Layer-cycle distance (no learning: popularity and the time until a layer runs again), the
activation matrix of MoE-Infinity, and the predicted-demand cache (PLEC) of ExpertFlow. Written
from the papers' words, not their code; where a paper leaves a choice open, the docstring names
ours. PLEC's own predictor needs token ids, which most traces lack: here it is fed the online
prediction "last token's experts and popularity", so that only the cache is compared.
"""

import numpy as np
import numpy.typing as npt

from .policy import CacheShape, LayerStep, PlainPolicy, Worth

Grid = npt.NDArray[np.float64]


class LayerCycle(PlainPolicy):
    """Evicts the largest expected distance d = steps until the layer runs + L (1 - p) / p."""

    FLOOR = 0.005

    def __init__(self, shape: CacheShape, rate: float = 0.1) -> None:
        self._shape, self._rate = shape, rate
        self._popularity = np.full((shape.layers, shape.experts), shape.k / shape.experts)
        self._layer = 0

    def start_step(self, step: LayerStep) -> None:
        """The layer's popularity follows."""
        row = self._popularity[step.layer]
        row *= 1.0 - self._rate
        row[step.experts] += self._rate
        self._layer = step.layer

    def use(self, object_id: int) -> None:
        """Already taken in with the whole step."""

    def worth(self) -> Worth:
        """Minus the expected distance."""
        shape, layers = self._shape, np.arange(self._shape.layers)
        away = np.where(layers > self._layer, 0, shape.layers) + layers - self._layer
        p = np.maximum(self._popularity, self.FLOOR)
        worth: Worth = -(away[:, None] + shape.layers * (1.0 - p) / p).ravel()
        return worth


class ActivationMatrix(PlainPolicy):
    """MoE-Infinity: a request's activations so far, matched with those of past requests.

    Worth = (share of the layer's activations in the nearest stored matrix and the own one, plus a
    little) x (1 - layer / layers): early layers stay, since they cannot be fetched ahead. The
    match (cosine) is made once a token, over at most 100 stored matrices; here the stored and the
    own matrix count alike.
    """

    STORED_MAX = 100
    LITTLE = 1e-3

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._own: dict[int, Grid] = {}
        self._stored: list[Grid] = []
        self._worth = np.zeros(shape.objects)
        early = 1.0 - np.arange(shape.layers) / shape.layers
        self._early = early[:, None]

    def start_step(self, step: LayerStep) -> None:
        """Count the step; match anew at the first layer."""
        shape = self._shape
        own = self._own.setdefault(step.lane, np.zeros((shape.layers, shape.experts)))
        if step.layer == 0:
            self._judge(own)
        own[step.layer, step.experts] += 1.0

    def use(self, object_id: int) -> None:
        """Already counted with the whole step."""

    def worth(self) -> Worth:
        """As of the token's first layer."""
        return self._worth

    def end_request(self, lane: int) -> None:
        """Its matrix joins the stored ones; the oldest goes when there are too many."""
        own = self._own.pop(lane, None)
        if own is not None:
            self._stored = [*self._stored, _rows_to_one(own)][-self.STORED_MAX :]

    def _judge(self, own: Grid) -> None:
        shares = _rows_to_one(own)
        if self._stored:
            flat = np.stack([matrix.ravel() for matrix in self._stored])
            norms = np.linalg.norm(flat, axis=1) * (np.linalg.norm(shares) + 1e-12)
            shares = (shares + self._stored[int((flat @ shares.ravel() / norms).argmax())]) / 2.0
        self._worth = ((shares + self.LITTLE) * self._early).ravel()


class PredictedDemand(PlainPolicy):
    """ExpertFlow's PLEC: slots of a layer in proportion to its predicted demand.

    Demand of a layer = exp(entropy) of its prediction; inside its quota a layer keeps its most
    probable experts. Layers already run by this token give way first (their slots are reused), and
    so do experts that were predicted and not used.
    """

    def __init__(self, shape: CacheShape, rate: float = 0.1, last_share: float = 0.3) -> None:
        self._shape, self._rate, self._last_share = shape, rate, last_share
        self._popularity = np.full((shape.layers, shape.experts), shape.k / shape.experts)
        self._used = np.zeros((shape.layers, shape.experts))
        self._planned = np.zeros((shape.layers, shape.experts))
        self._now = np.zeros((shape.layers, shape.experts))

    def start_step(self, step: LayerStep) -> None:
        """Plan at the first layer; correct each layer once its gate has chosen."""
        layer = step.layer
        if layer == 0:
            self._plan()
        self._popularity[layer] *= 1.0 - self._rate
        self._popularity[layer, step.experts] += self._rate
        self._used[layer] = 0.0
        self._used[layer, step.experts] = 1.0
        released = np.minimum(self._planned[layer], 0.0) - 1.0
        self._now[layer] = np.where(self._used[layer] > 0, self._planned[layer] / 2.0, released)

    def use(self, object_id: int) -> None:
        """Already taken in with the whole step."""

    def worth(self) -> Worth:
        """Places left inside the layer's quota, corrected."""
        return self._now.ravel()

    def _plan(self) -> None:
        shape = self._shape
        predicted = (1.0 - self._last_share) * self._popularity + self._last_share * self._used
        shares = _rows_to_one(predicted)
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
        demand = np.exp(entropy)
        quota = shape.slots * demand / demand.sum()
        rank = np.empty_like(predicted)
        order = np.argsort(-predicted, axis=1, kind="stable")
        np.put_along_axis(rank, order, np.arange(shape.experts)[None, :].astype(float), axis=1)
        self._planned = quota[:, None] - rank + predicted / 2.0
        self._now = self._planned.copy()


def _rows_to_one(matrix: Grid) -> Grid:
    """Each row divided by its sum; empty rows are even."""
    total = matrix.sum(axis=1, keepdims=True)
    even = np.full_like(matrix, 1.0 / matrix.shape[1])
    shares: Grid = np.where(total > 0, matrix / np.maximum(total, 1e-12), even)
    return shares
