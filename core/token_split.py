"""How much of an expert's work does each of its copies do, so that no device has more than it must?

An expert with one copy leaves no choice. Those with several are poured, one after the other, over
their devices like water over a floor; a few rounds of that bring every device near its final load.
What is left is exact: from a device that is too full, work is pushed along a path of copies to one
that is not; where no path is left, the devices that were reached cannot give work away, so that
their mean load is a lower bound, and the aim is raised to it. The largest load that remains is the
least possible one.

Standard library only: the engine splits its batches with it and placement judges its plans with it.
The loops run in C where the extension was built, and here otherwise, with the same answer.

Legend: E experts, C copies (those of one expert side by side), D devices.
"""

import itertools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

extension: ModuleType | None
try:
    from . import _level as extension  # type: ignore[attr-defined, no-redef, unused-ignore]
except ImportError:
    extension = None

INTERFACE = 1  # as in _level.c
NEAR = 1e-10  # of the mean load: what is smaller is rounding; as in _level.h
#: Rounds of pouring before the exact part. More only moves work from one part to the other.
SWEEPS = 6

if extension is not None and getattr(extension, "INTERFACE", 0) != INTERFACE:
    extension = None


def backend_name() -> str:
    """ "native" when the compiled loops are there, else "reference"."""
    return "native" if extension is not None else "reference"


def level_shares(load_E: Any, start_E1: Any, rank_C: Any, share_C: Any, width: int) -> float:
    """Write into `share_C` the share of its expert that each copy does; give the largest load.

    All four are contiguous buffers (array.array, numpy): float64 loads, int32 `start_E1` (copies of
    expert e are start[e] .. start[e + 1], at least one, each on another device), int32 devices in
    [0, width), float64 shares. Shares of an expert sum to 1; without load they are equal. Loads
    must be finite and not negative: this is the hot path and does not look. ValueError when the
    buffers do not fit together.
    """
    if extension is not None:
        return float(extension.level(load_E, start_E1, rank_C, share_C, width, SWEEPS))
    start = memoryview(start_E1).tolist()
    rank, load = memoryview(rank_C).tolist(), [float(each) for each in memoryview(load_E).tolist()]
    _check(len(load), start, rank, width)
    split = Split(load, start, rank, width)
    most = split.level(SWEEPS)
    memoryview(share_C)[:] = memoryview(_array(split.shares()))
    return most


def _array(values: Sequence[float]) -> Any:
    from array import array

    return array("d", values)


def _check(experts: int, start: list[int], rank: list[int], width: int) -> None:
    rising = all(a < b for a, b in itertools.pairwise(start))
    ends = start[:1] == [0] and len(start) == experts + 1 and start[-1] == len(rank)
    if not (rising and ends and width > 0 and all(0 <= r < width for r in rank)):
        raise ValueError("loads and copies do not fit together")


class Split:
    """The state of one layer while it is levelled: what every copy carries, what devices have."""

    def __init__(self, load: list[float], start: list[int], rank: list[int], width: int) -> None:
        self.load, self.start, self.rank = load, start, rank
        self.many = [e for e in range(len(load)) if start[e + 1] - start[e] > 1]
        self.flow = [0.0] * len(rank)
        self.device = [0.0] * width
        self.incident: list[list[int]] = [[] for _ in range(width)]
        self.owner = [0] * len(rank)
        for e, work in enumerate(load):
            for i in self._copies(e):
                self.flow[i] = work / len(self._copies(e))
                self.device[rank[i]] += self.flow[i]
                self.owner[i] = e
        for e in self.many:
            for i in self._copies(e):
                self.incident[rank[i]].append(i)

    def _copies(self, expert: int) -> range:
        return range(self.start[expert], self.start[expert + 1])

    def shares(self) -> list[float]:
        """[C] of each expert's load; equal for an expert without load."""
        counts = [len(self._copies(e)) for e in self.owner]
        loads = [self.load[e] for e in self.owner]
        each = zip(self.flow, loads, counts, strict=True)
        return [flow / load if load > 0 else 1.0 / count for flow, load, count in each]

    def level(self, sweeps: int) -> float:
        """Make the largest load of a device the least possible one, and give it."""
        limit = sum(self.device) / len(self.device)
        near = limit * NEAR
        for _ in range(sweeps):
            for e in self.many:
                self._pour(e)
        # Every push empties a copy, fills a device or frees one; the bound is a guard.
        for _ in range(64 * (len(self.device) + len(self.rank))):
            full = max(range(len(self.device)), key=self.device.__getitem__)
            if self.device[full] <= limit + 2 * near:
                break
            low, came, seen = self._reach(full, limit, near)
            if low is None:  # these devices cannot give away: their mean is a lower bound
                mean = sum(self.device[d] for d in seen) / len(seen)
                limit = mean if mean > limit else limit + near
            else:
                self._push(full, low, came, limit)
        return max(self.device)

    def _pour(self, expert: int) -> None:
        """Pour one expert anew over its devices."""
        copies, load = self._copies(expert), self.load[expert]
        for i in copies:
            self.device[self.rank[i]] -= self.flow[i]
        floors = sorted(max(0.0, self.device[self.rank[i]]) for i in copies)
        total, surface = load, 0.0
        for under, floor in enumerate(floors):
            if under and total <= floor * under:
                break
            total += floor
            surface = total / (under + 1)
        rooms = [max(0.0, surface - self.device[self.rank[i]]) for i in copies]
        by = load / sum(rooms) if sum(rooms) > 0 else 0.0
        for i, room in zip(copies, rooms, strict=True):
            self.flow[i] = room * by
            self.device[self.rank[i]] += self.flow[i]

    def _reach(
        self, full: int, limit: float, near: float
    ) -> tuple[int | None, dict[int, tuple[int, int]], list[int]]:
        """(a device below the limit or None, by which copies each was reached, all reached)."""
        came: dict[int, tuple[int, int]] = {}
        queue = [full]
        for d in queue:
            for giver in self.incident[d]:
                if self.flow[giver] <= near:
                    continue
                for i in self._copies(self.owner[giver]):
                    after = self.rank[i]
                    if after == full or after in came:
                        continue
                    came[after] = (giver, i)
                    queue.append(after)
                    if self.device[after] < limit - near:
                        return after, came, queue
        return None, came, queue

    def _push(self, full: int, low: int, came: dict[int, tuple[int, int]], limit: float) -> None:
        path, d = [], low
        while d != full:
            path.append(came[d])
            d = self.rank[came[d][0]]
        amount = min(self.device[full] - limit, limit - self.device[low])
        amount = min(amount, *(self.flow[giver] for giver, _ in path))
        for giver, taker in path:
            self.flow[giver] -= amount
            self.flow[taker] += amount
        self.device[full] -= amount
        self.device[low] += amount
