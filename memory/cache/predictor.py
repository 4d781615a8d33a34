"""What will the next layers of this token use? One small interface, and the online predictors.

Untrained, learning from the routes they are shown: popularity, the previous token, transitions
between layers, and the trajectory memory. The next layer's gate applied to the current hidden
state needs the model's own numbers, so the engine feeds it. Judged by `recall.py`, never by the
share of right elements. Order matters: `observe` a layer, then ask for later ones.
"""

from typing import Protocol

import numpy as np

from .policy import CacheShape, LayerStep
from .trace import Floats
from .trajectory import TrajectoryMemory
from .trajectory_state import TrajectorySettings, TrajectoryShape


class Predictor(Protocol):
    """Scores experts of a layer that is still to come."""

    def observe(self, step: LayerStep) -> None:
        """A layer of the token has been routed."""

    def scores(self, layer: int, target: int) -> Floats:
        """[experts] of layer `target` of the same token; `layer` is the last one observed."""

    def freeze(self) -> None:
        """From now on nothing new is learnt; the token in flight is still followed."""


class Popularity:
    """Each expert's average use, following at a rate."""

    def __init__(self, shape: CacheShape, rate: float = 0.02) -> None:
        self._average = np.full((shape.layers, shape.experts), shape.k / shape.experts, np.float32)
        self._rate = rate

    def observe(self, step: LayerStep) -> None:
        """One layer's averages follow."""
        row = self._average[step.layer]
        row *= np.float32(1.0 - self._rate)
        row[step.experts] += np.float32(self._rate)

    def scores(self, layer: int, target: int) -> Floats:
        """The averages."""
        return self._average[target]

    def freeze(self) -> None:
        """The averages stay."""
        self._rate = 0.0


class PreviousToken:
    """What the token before used in that layer, popularity among the rest."""

    def __init__(self, shape: CacheShape) -> None:
        self._popularity = Popularity(shape)
        self._last = np.zeros((shape.layers, shape.experts), np.float32)

    def observe(self, step: LayerStep) -> None:
        """Remember the layer's gates."""
        self._popularity.observe(step)
        self._last[step.layer] = 0.0
        self._last[step.layer, step.experts] = step.gates

    def scores(self, layer: int, target: int) -> Floats:
        """Last gates first."""
        scores: Floats = self._last[target] + self._popularity.scores(layer, target)
        return scores

    def freeze(self) -> None:
        """The previous token is an input, not something learnt."""
        self._popularity.freeze()


class Transitions:
    """Counts of (expert here, expert there) for every look-ahead up to `reach`, and the last token.

    Score = mean over this layer's experts of the smoothed chance there, plus what the previous
    token used there.
    """

    SMOOTH = 1.0
    LAST = 0.2

    def __init__(self, shape: CacheShape, reach: int = 8) -> None:
        layers, experts = shape.layers, shape.experts
        self._reach = min(reach, max(layers - 1, 1))
        even = self.SMOOTH * shape.k / experts
        self._seen = np.full((layers, experts), self.SMOOTH, np.float32)
        self._pairs = np.full((self._reach, layers, experts, experts), even, np.float32)
        self._last = np.zeros((layers, experts), np.float32)
        self._path: dict[int, LayerStep] = {}
        self._learning = True

    def observe(self, step: LayerStep) -> None:
        """Count the pairs that end in this layer."""
        if step.layer == 0:
            for old in self._path.values():
                self._last[old.layer] = 0.0
                self._last[old.layer, old.experts] = 1.0
            self._path = {}
        self._path[step.layer] = step
        if not self._learning:
            return
        self._seen[step.layer, step.experts] += 1.0
        for ahead in range(1, min(self._reach, step.layer) + 1):
            before = self._path.get(step.layer - ahead)
            if before is not None:
                self._pairs[ahead - 1, before.layer][np.ix_(before.experts, step.experts)] += 1.0

    def scores(self, layer: int, target: int) -> Floats:
        """Chances at the target, given this layer's experts."""
        here = self._path[layer].experts
        pairs = self._pairs[min(target - layer, self._reach) - 1, layer]
        chance = (pairs[here] / self._seen[layer, here][:, None]).mean(axis=0)
        scores: Floats = chance + self.LAST * self._last[target]
        return scores

    def freeze(self) -> None:
        """The counts stay."""
        self._learning = False


class Trajectory:
    """What past tokens with a path like this one's used."""

    def __init__(self, shape: CacheShape, settings: TrajectorySettings | None = None) -> None:
        about = TrajectoryShape(shape.layers, shape.experts, shape.k, max(shape.slots, 1))
        self.memory = TrajectoryMemory(about, settings or TrajectorySettings(history=512))
        self._frozen: Floats | None = None

    def observe(self, step: LayerStep) -> None:
        """Follow the token; a finished one joins the memory unless frozen."""
        state = self.memory.state
        before = int(state.open_row[0])
        self.memory.observe(0, step.layer, step.experts, step.gates)
        if self._frozen is not None:
            state.popularity[:] = self._frozen
            if before >= 0 and before != int(state.open_row[0]):
                self.memory.forget(before)  # seen as input, not remembered

    def scores(self, layer: int, target: int) -> Floats:
        """Share of the attended tokens that used each expert."""
        return self.memory.predict(0, layer, target)

    def freeze(self) -> None:
        """Only tokens remembered by now count."""
        self.memory.finish(0)
        self._frozen = self.memory.state.popularity.copy()


class NextGate:
    """The gates of later layers applied to the current hidden state (residual stream).

    `gates`: [layers, experts, hidden]. The engine calls `see` with the hidden state that the
    layer's own gate sees. Spares stalls, never loads: what it names is needed at once anyway.
    """

    def __init__(self, gates: Floats) -> None:
        self._gates = gates
        self._hidden = np.zeros(gates.shape[2], np.float32)

    def see(self, hidden: Floats) -> None:
        """The hidden state [hidden] before the layer's gate."""
        self._hidden = hidden

    def observe(self, step: LayerStep) -> None:
        """Routes teach it nothing."""

    def scores(self, layer: int, target: int) -> Floats:
        """The target gate's softmax."""
        logits = self._gates[target] @ self._hidden
        weights = np.exp(logits - logits.max())
        scores: Floats = (weights / weights.sum()).astype(np.float32)
        return scores

    def freeze(self) -> None:
        """Nothing to stop."""
