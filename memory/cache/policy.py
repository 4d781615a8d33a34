"""What is a cache policy, and what do the plain ones keep?

A policy is told each layer step (all routes of the step are known: the gate has run) and each use
of an object, and says what every object is worth keeping. The simulator, and later the engine, own
residency: they evict the resident object of the lowest worth. So a policy never holds a slot, and
all of them can be compared on the same stream. Nothing here may look ahead; that is `belady.py`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .trace import Floats, Ints

Worth = npt.NDArray[np.float64] | Floats


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What competes for slots: L layers of E experts, k chosen by a token; `slots` in all."""

    layers: int
    experts: int
    k: int
    slots: int
    lanes: int = 1  # token sequences that may be in flight

    @property
    def objects(self) -> int:
        """How many (layer, expert) objects; their ids are layer * experts + expert."""
        return self.layers * self.experts


@dataclass(slots=True)
class LayerStep:
    """One layer of one token: its demand, as the gate gives it."""

    lane: int
    layer: int
    experts: Ints  # [k], best first
    gates: Floats  # [k], adding up to 1
    objects: list[int]  # the same experts as object ids


class Policy(Protocol):
    """What every policy answers; `objects` is the length of what `worth` returns."""

    protects_demand: bool  # never evicts what the running layer step needs

    def start_step(self, step: LayerStep) -> None:
        """The gate of a layer has chosen."""

    def use(self, object_id: int) -> None:
        """An object is used now, hit or miss."""

    def worth(self) -> Worth:
        """[objects]; the resident object of the lowest worth goes first."""

    def end_request(self, lane: int) -> None:
        """The lane's request is over."""


class PlainPolicy:
    """The parts that simple policies do not need."""

    protects_demand = False

    def start_step(self, step: LayerStep) -> None:
        """Nothing to learn from the gate."""

    def end_request(self, lane: int) -> None:
        """Nothing is kept for a request."""


class OnDemand(PlainPolicy):
    """No cache at all: an expert is loaded, used and dropped. The simulator counts no hits."""

    def __init__(self, shape: CacheShape) -> None:
        self._worth = np.zeros(shape.objects)

    def use(self, object_id: int) -> None:
        """Nothing is remembered."""

    def worth(self) -> Worth:
        """All the same."""
        return self._worth


class LeastRecent(PlainPolicy):
    """LRU: the longest unused goes first."""

    def __init__(self, shape: CacheShape) -> None:
        self._last = np.full(shape.objects, -1.0)
        self._now = 0.0

    def use(self, object_id: int) -> None:
        """The object becomes the youngest."""
        self._now += 1.0
        self._last[object_id] = self._now

    def worth(self) -> Worth:
        """Time of the last use."""
        return self._last


class LeastFrequent(PlainPolicy):
    """LFU: the least used since the start goes first; among equals the longest unused."""

    TIE = 1e-9  # less than one use over any trace

    def __init__(self, shape: CacheShape) -> None:
        self._count = np.zeros(shape.objects)
        self._now = 0

    def use(self, object_id: int) -> None:
        """One use more."""
        self._now += 1
        self._count[object_id] = np.floor(self._count[object_id]) + 1.0 + self._now * self.TIE

    def worth(self) -> Worth:
        """Number of uses."""
        return self._count


class FrequentRecent(PlainPolicy):
    """LFRU: uses divided by the time since the last one (as in an open change to vLLM)."""

    def __init__(self, shape: CacheShape) -> None:
        self._count = np.zeros(shape.objects)
        self._last = np.zeros(shape.objects)
        self._now = 0.0

    def use(self, object_id: int) -> None:
        """One use more, just now."""
        self._now += 1.0
        self._count[object_id] += 1.0
        self._last[object_id] = self._now

    def worth(self) -> Worth:
        """Uses for each unit of age."""
        worth: Worth = self._count / (self._now - self._last + 1.0)
        return worth
