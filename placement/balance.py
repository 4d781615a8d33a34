"""Which experts of a layer move, and where to, so that no rank computes much more than the others?

Quotas say how many experts a rank ends with, and with that how many bytes move. Which ones is free,
and costs nothing: this chooses by load. A layer is as slow as its fullest rank, so the largest load
is made small, layer by layer.

A rank that holds more than its quota gives some away, any of them; one that holds less keeps all it
has. So an expert either stays with its holder or fills a rank that lacks some. The search starts
from a given assignment and swaps, at unchanged bytes, what most lowers the fullest rank; small
layers are then searched whole, within a limit of nodes. Same input, same answer: no clock.

Legend: E experts, W ranks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: A swap must lower the load by more than rounding.
LEAST_GAIN = 1e-9
#: Nodes of the whole search of one layer; layers of this size are searched whole in milliseconds.
SEARCH_EXPERTS_MAX, SEARCH_NODES_MAX = 16, 4000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def balance_layer(
    owner_E: Sequence[int], home_E: Sequence[int | None], load_E: Sequence[float], width: int
) -> tuple[int, ...]:
    """A new owner of each expert: as many moves and experts per rank as in `owner_E`.

    `home_E[e]` is the rank that holds expert e now, or None. `load_E` are tokens or any other
    measure of work.
    """
    home = np.asarray([-1 if home is None else home for home in home_E], dtype=np.int64)
    load = np.asarray(load_E, dtype=np.float64)
    owner = np.asarray(owner_E, dtype=np.int64).copy()
    allowed = int((owner != home).sum())
    for _ in range(2 * width):
        if not _swap_best(owner, home, load, width):
            break
    if len(owner) <= SEARCH_EXPERTS_MAX:
        return _search(owner, home, load, allowed)
    return tuple(owner.tolist())


def largest_load(owner_E: Sequence[int], load_E: Sequence[float], width: int) -> float:
    """The work of the fullest rank."""
    return float(np.bincount(owner_E, weights=load_E, minlength=width).max())


def _swap_best(owner: Ints, home: Ints, load: Floats, width: int) -> bool:
    """Swap an expert of the fullest rank for a lighter one elsewhere; False when none helps."""
    work_W = np.bincount(owner, weights=load, minlength=width)
    full = int(work_W.argmax())
    best, swap = work_W[full] - LEAST_GAIN, None
    for mine in np.flatnonzero(owner == full):
        others = np.flatnonzero(_swappable(int(mine), owner, home))
        if not len(others):
            continue
        delta = load[mine] - load[others]
        peak = np.maximum(work_W[full] - delta, work_W[owner[others]] + delta)
        at = int(peak.argmin())
        if peak[at] < best:
            best, swap = peak[at], (int(mine), int(others[at]))
    if swap is None:
        return False
    first, second = swap
    owner[first], owner[second] = owner[second], owner[first]
    return True


def _swappable(mine: int, owner: Ints, home: Ints) -> NDArray[np.bool_]:
    """Experts that may trade owners with `mine`, with as many moves after as before."""
    before = (owner[mine] != home[mine]).astype(np.int64) + (owner != home)
    after = (owner != home[mine]).astype(np.int64) + (owner[mine] != home)
    allowed: NDArray[np.bool_] = (owner != owner[mine]) & (after <= before)
    return allowed


@dataclass
class _Walk:
    """A depth-first walk over owners, heaviest expert first."""

    order: list[int]
    home: Ints
    load: Floats
    room: list[int]  # experts that each rank may still take
    moves: int  # that may still be made
    best: float
    answer: list[int]
    work: list[float] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    nodes: int = 0

    def down(self, depth: int, peak: float) -> None:
        """Try every owner of the next expert that can still beat the best answer."""
        self.nodes += 1
        if depth == len(self.order):
            self.best, self.answer = peak, list(self.owner)
            return
        expert = self.order[depth]
        load, home = float(self.load[expert]), int(self.home[expert])
        for rank in sorted(range(len(self.room)), key=lambda r: self.work[r]):
            cost = int(rank != home)
            reached = max(peak, self.work[rank] + load)
            if not self.room[rank] or cost > self.moves or reached >= self.best - LEAST_GAIN:
                continue
            if self.nodes >= SEARCH_NODES_MAX:
                return
            self.owner[expert] = rank
            self._take(rank, load, cost, 1)
            self.down(depth + 1, reached)
            self._take(rank, -load, -cost, -1)

    def _take(self, rank: int, load: float, cost: int, count: int) -> None:
        self.room[rank] -= count
        self.moves -= cost
        self.work[rank] += load


def _search(owner: Ints, home: Ints, load: Floats, moves: int) -> tuple[int, ...]:
    counts = Counter(owner.tolist())
    width = int(owner.max()) + 1  # a rank above it has no quota
    walk = _Walk(
        order=np.argsort(-load, kind="stable").tolist(),
        home=home,
        load=load,
        room=[counts[rank] for rank in range(width)],
        moves=moves,
        best=largest_load(owner.tolist(), load.tolist(), width),
        answer=owner.tolist(),
        work=[0.0] * width,
        owner=owner.tolist(),
    )
    walk.down(0, 0.0)
    return tuple(walk.answer)
