"""How does the hit rate of an expert cache grow with its slots? A record that the planner reads.

Made by replaying recorded routes (`moectl trace replay --curve FILE`); used to say what a budget of
HBM for experts is worth before anything is loaded. Read and written like every record
(`records.to_json`, `records.from_json`). Plain data, standard library only.
"""

from bisect import bisect_right
from dataclasses import dataclass

from .errors import RefusedError


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What one number of resident experts gives."""

    slots: int
    hit_rate: float  # of the policy
    hit_rate_min: float  # of Belady's MIN: no policy can do better


@dataclass(frozen=True, slots=True)
class HitRateCurve:
    """Hit rates of one policy on one trace, by slots; `points` grow in slots."""

    trace: str  # what was replayed, in words
    model: str
    policy: str
    pool: str  # "shared" or "per-layer"
    layers: int
    experts_per_layer: int
    experts_per_token: int
    points: tuple[CurvePoint, ...]

    def __post_init__(self) -> None:
        slots = [point.slots for point in self.points]
        if not slots or slots != sorted(set(slots)) or slots[0] < 1:
            raise RefusedError(f"a curve needs growing numbers of slots, at least one: {slots}")
        if any(not 0.0 <= point.hit_rate <= 1.0 for point in self.points):
            raise RefusedError("a hit rate lies between 0 and 1")

    @property
    def objects(self) -> int:
        """All (layer, expert) objects: as many slots as these hold everything."""
        return self.layers * self.experts_per_layer

    def hit_rate_at(self, slots: int) -> float:
        """The hit rate with so many slots, straight between the points measured.

        Below the first point it falls to 0 at no slots; with a slot for every object it is 1, or
        the last point's where that was measured.
        """
        known = [(0, 0.0), *((point.slots, point.hit_rate) for point in self.points)]
        if known[-1][0] < self.objects:
            known.append((self.objects, 1.0))
        if slots >= known[-1][0]:
            return known[-1][1]
        at = bisect_right([x for x, _ in known], slots)
        (x0, y0), (x1, y1) = known[at - 1], known[at]
        return y0 + (y1 - y0) * (slots - x0) / (x1 - x0)

    def loads_per_token(self, slots: int) -> float:
        """Experts fetched for each token with so many slots."""
        return (1.0 - self.hit_rate_at(slots)) * self.layers * self.experts_per_token
