"""What is the least number of loads that any policy can have, and the least time?

Belady's MIN evicts what is needed last; for experts of one size no policy, prefetching or not,
loads fewer. It reads the future and is therefore a bound, never a choice: only the simulator may
use it. The bound on time adds the link: nothing ends before its computing, nor before its bytes
have come.
"""

import numpy as np

from .policy import CacheShape, PlainPolicy, Worth
from .trace import Ints, RoutingTrace

NEVER = np.iinfo(np.int64).max // 4


class Belady(PlainPolicy):
    """MIN over a known stream of uses."""

    def __init__(self, shape: CacheShape, stream: Ints) -> None:
        self._next_at = next_uses(stream.ravel(), shape.objects)
        self._worth = np.full(shape.objects, -float(NEVER))
        self._at = 0

    def use(self, object_id: int) -> None:
        """The stream moves on by one."""
        self._worth[object_id] = -float(self._next_at[self._at])
        self._at += 1

    def worth(self) -> Worth:
        """Minus the time of the next use."""
        return self._worth


def next_uses(stream: Ints, objects: int) -> np.ndarray:
    """For each place in a stream of object ids, the place of the same object's next use."""
    following = np.full(len(stream), NEVER, np.int64)
    seen = np.full(objects, NEVER, np.int64)
    for at in range(len(stream) - 1, -1, -1):
        following[at] = seen[stream[at]]
        seen[stream[at]] = at
    return following


def least_seconds(compute_s: float, loads_min: int, expert_bytes: int, bytes_per_s: float) -> float:
    """T >= max(compute, loads_MIN x bytes / bandwidth), whatever is overlapped."""
    return max(compute_s, loads_min * expert_bytes / bytes_per_s)


def static_best_hit_rate(trace: RoutingTrace, slots: int, pool: str = "shared") -> float:
    """Hit rate of the best fixed set of residents, chosen with hindsight; its loads not counted."""
    counts = np.bincount(trace.object_ids().ravel(), minlength=trace.objects)
    rows = counts.reshape(len(trace.layers) if pool == "per-layer" else 1, -1)
    best = np.sort(rows, axis=1)[:, ::-1][:, : slots // len(rows)]
    return float(best.sum() / max(counts.sum(), 1))
