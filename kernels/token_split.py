"""Which copy of its expert computes each (token, expert) pair of a batch?

Two steps. `split_shares` says which share of an expert's tokens each of its copies should take, so
that the fullest rank has as little as possible (`core.token_split`; some tens of microseconds).
`assign_copies` turns shares into a rank per pair, vectorised, within one token of the share. Which
copy computes a pair never changes its result, only who is busy.

Legend: E experts, C copies (those of one expert side by side), P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.token_split import level_shares

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class CopyTable:
    """Where the copies of one layer's experts are: built once per epoch.

    Copies of expert e are `rank_C[start_E1[e] : start_E1[e + 1]]`, ranks ascending.
    """

    start_E1: Ints
    rank_C: Ints
    width: int

    @property
    def is_free(self) -> bool:
        """Whether any expert has several copies, so that there is something to decide."""
        return len(self.rank_C) > len(self.start_E1) - 1


def copy_table(owners_E: Sequence[Sequence[int]], width: int) -> CopyTable:
    """The table of a layer's owners, as in `Placement.owners[layer]`.

    ValueError when an expert has no copy, two on one rank, or one outside [0, width).
    """
    for expert, ranks in enumerate(owners_E):
        if not ranks or len(set(ranks)) != len(ranks) or not 0 <= min(ranks) <= max(ranks) < width:
            raise ValueError(f"expert {expert}: copies on ranks {list(ranks)} of {width}")
    counts = [len(ranks) for ranks in owners_E]
    start_E1 = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    flat = [rank for ranks in owners_E for rank in sorted(ranks)]
    return CopyTable(start_E1, np.asarray(flat, dtype=np.int32), width)


def split_shares(load_E: NDArray[np.generic], copies: CopyTable) -> Floats:
    """[C] which share of its expert each copy should take, for these loads (tokens, any unit).

    Shares of an expert sum to 1. The largest load of a rank is the least that any split reaches.
    Loads must be finite and not negative.
    """
    share_C = np.empty(len(copies.rank_C))
    load = np.ascontiguousarray(load_E, dtype=np.float64)
    level_shares(load, copies.start_E1, copies.rank_C, share_C, copies.width)
    return share_C


def equal_shares(copies: CopyTable) -> Floats:
    """[C] every copy of an expert takes the same: what to do before any load is known."""
    counts_E = np.diff(copies.start_E1)
    return np.repeat(1.0 / counts_E, counts_E)


def assign_copies(
    expert_P: NDArray[np.integer], share_C: Floats, copies: CopyTable, phase: float = 0.5
) -> NDArray[np.int64]:
    """[P] the rank that computes each pair, so that every copy gets its share of these pairs.

    Of an expert's n pairs, in their order, the j-th goes to the copy whose range of shares holds
    (j + phase) / n: within one pair of the share. Senders that give different phases in [0, 1)
    do not all prefer the same copy when each has only a pair or two of an expert.
    """
    counts_E = np.bincount(expert_P, minlength=len(copies.start_E1) - 1)
    order_P = np.argsort(expert_P, kind="stable")
    sorted_P = np.asarray(expert_P)[order_P]
    before_E = np.cumsum(counts_E) - counts_E
    place_P = (np.arange(len(order_P)) - before_E[sorted_P] + phase) / counts_E[sorted_P]
    ends_C = _range_ends(share_C, copies)
    chosen_P = np.searchsorted(ends_C, sorted_P + place_P, side="right")
    rank_P = np.empty(len(order_P), dtype=np.int64)
    rank_P[order_P] = copies.rank_C[chosen_P]
    return rank_P


def _range_ends(share_C: Floats, copies: CopyTable) -> Floats:
    """[C] where each copy's range of shares ends, on one axis: expert e's lie in e .. e + 1."""
    sums_C = np.cumsum(share_C)
    starts, ends = copies.start_E1[:-1], copies.start_E1[1:]
    before_E = sums_C[starts] - share_C[starts]
    experts_E = np.arange(len(starts))
    ends_C = sums_C + np.repeat(experts_E - before_E, ends - starts)
    ends_C[ends - 1] = experts_E + 1.0  # exactly, so that rounding leaves no pair without a copy
    return ends_C
