"""How many experts of each layer does each rank hold, so that the fewest move and ranks stay even?

Pure counting: it never looks at which expert, only at how many. With E experts in a layer and W
ranks every rank gets floor(E/W) or one more ("the extra"), and E mod W ranks get the extra. Moving
the fewest experts says who *must* be considered: a rank that holds more than floor today saves one
move by getting an extra. So per layer

    hungry = ranks that hold more than floor now       extras = E mod W
    hungry >= extras: the extras go to hungry ranks, any of them: all of these are equally cheap
    hungry <  extras: every hungry rank gets one, any others the rest: equally cheap again

and within that freedom the totals over layers are made as even as they can be: start greedily, then
move an extra along a chain of ranks from a fuller to an emptier rank until no chain helps. That is
the classic augmenting path argument, so the result is the evenest of all choices with the fewest
moves.

Legend: L layers, W ranks.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]


def lower_bound_moves(expert_counts: Sequence[int], held_LW: Counts) -> int:
    """The least number of expert copies that must come to a rank, whatever the plan.

    Shapes:  held_LW [L, W], experts that each new rank's device holds now.
    Why:     a rank that ends with q experts of a layer and holds h keeps at most min(h, q). With
             quotas of floor or floor + 1 the sum of these is largest when every extra that can save
             a move does, and the number of those is min(extras, ranks that hold more than floor).
    """
    width = held_LW.shape[1]
    kept = 0
    for count, held_W in zip(expert_counts, held_LW, strict=True):
        floor, extras = divmod(count, width)
        kept += int(np.minimum(held_W, floor).sum())
        kept += min(extras, int((held_W > floor).sum()))
    return sum(expert_counts) - kept


def choose_quotas(expert_counts: Sequence[int], held_LW: Counts) -> Counts:
    """Experts of each layer that each rank shall hold: [L, W], rows sum to the layer's experts."""
    width = held_LW.shape[1]
    floor_L1 = np.asarray([[count // width] for count in expert_counts], dtype=np.int64)
    extras_L = [count % width for count in expert_counts]
    forced_LW, open_LW = _freedom(extras_L, held_LW > floor_L1)
    chosen_LW = _greedy(extras_L, forced_LW, open_LW)
    _even_out(chosen_LW, forced_LW, open_LW)
    return floor_L1 + chosen_LW.astype(np.int64)


def _freedom(extras_L: Sequence[int], hungry_LW: Flags) -> tuple[Flags, Flags]:
    """(forced, open): ranks that must get an extra, and ranks that may; disjoint."""
    forced_LW = np.zeros_like(hungry_LW)
    open_LW = np.zeros_like(hungry_LW)
    for layer, extras in enumerate(extras_L):
        hungry_W = hungry_LW[layer]
        if int(hungry_W.sum()) >= extras:
            open_LW[layer] = hungry_W
        else:
            forced_LW[layer] = hungry_W
            open_LW[layer] = ~hungry_W
    return forced_LW, open_LW


def _greedy(extras_L: Sequence[int], forced_LW: Flags, open_LW: Flags) -> Flags:
    """A first choice: layer by layer, extras go to the emptiest ranks that may have them."""
    chosen_LW = forced_LW.copy()
    total_W = forced_LW.sum(axis=0).astype(np.int64)
    for layer, extras in enumerate(extras_L):
        wanted = extras - int(forced_LW[layer].sum())
        ranks = np.flatnonzero(open_LW[layer])
        emptiest = ranks[np.argsort(total_W[ranks], kind="stable")][:wanted]
        chosen_LW[layer, emptiest] = True
        total_W[emptiest] += 1
    return chosen_LW


def _even_out(chosen_LW: Flags, forced_LW: Flags, open_LW: Flags) -> None:
    """Move extras along chains until no fuller rank can reach a rank that holds two fewer."""
    movable_LW = chosen_LW & open_LW & ~forced_LW
    # Every round lowers the sum of squared totals by at least 2, so this ends; the bound is a
    # guard.
    for _ in range(int(movable_LW.sum()) * chosen_LW.shape[1] + 1):
        chain = _improving_chain(chosen_LW, open_LW)
        if chain is None:
            return
        for giver, taker in pairwise(chain):
            layers = np.flatnonzero(
                chosen_LW[:, giver] & open_LW[:, giver] & open_LW[:, taker] & ~chosen_LW[:, taker]
            )
            chosen_LW[layers[0], giver] = False
            chosen_LW[layers[0], taker] = True


def _improving_chain(chosen_LW: Flags, open_LW: Flags) -> list[int] | None:
    """Ranks from a full one to one at least two emptier, each able to give an extra to the next."""
    total_W = chosen_LW.sum(axis=0)
    gives_LW = (chosen_LW & open_LW).astype(np.int32)
    takes_LW = (open_LW & ~chosen_LW).astype(np.int32)
    reach_WW = (gives_LW.T @ takes_LW) > 0
    for start in np.argsort(-total_W, kind="stable"):
        if total_W[start] - total_W.min() < 2:
            return None
        chain = _shortest_chain(int(start), reach_WW, total_W)
        if chain is not None:
            return chain
    return None


def _shortest_chain(start: int, reach_WW: Flags, total_W: Counts) -> list[int] | None:
    before: dict[int, int | None] = {start: None}
    queue = deque([start])
    while queue:
        rank = queue.popleft()
        if total_W[rank] <= total_W[start] - 2:
            return _walk_back(rank, before)
        for follower in np.flatnonzero(reach_WW[rank]):
            if int(follower) not in before:
                before[int(follower)] = rank
                queue.append(int(follower))
    return None


def _walk_back(rank: int, before: dict[int, int | None]) -> list[int]:
    chain = [rank]
    while (previous := before[chain[-1]]) is not None:
        chain.append(previous)
    return chain[::-1]
