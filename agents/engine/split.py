"""Which rank computes each (row, expert) pair of a batch, when some experts have several copies?

Every rank decides about its own rows, without a message: it knows how many rows each rank has in
this step (they stand in the step's control words) and what its own rows want; what the rows of
others want it estimates from what its own wanted lately. Of that load of all ranks the shares of
the copies are levelled (`kernels.token_split`), so that the fullest rank has as little as possible.
Then this rank fills the share of the copy that lies here with its own rows first, and sends away
what is more: with equal loads nothing travels.

An estimate that is wrong makes a rank busier, never a result different: a pair's result does not
depend on where it is computed. The decision is a function of ids, rows and what was seen before.

Legend: N rows, K experts per row, E experts, C copies, W ranks, L MoE layers.
"""

from collections.abc import Sequence

import numpy as np

from ...kernels.token_split import CopyTable, assign_copies, copy_table, split_shares

#: How much of what was wanted before counts in the next batch. A tenth is forgotten each time, so
#: that a change of workload is followed within some ten steps while single batches do not shake it.
REMEMBER = 0.9
#: Tokens that every expert is thought to have had before any was seen: little, but never nothing.
UNSEEN = 1e-3

Owners = Sequence[Sequence[Sequence[int]]]


class CopySplit:
    """The split of one epoch at one rank; used by the engine thread only.

    `owners[l][e]` are the ranks that hold a copy of expert e of layer l, as in `Placement.owners`.
    Raises: ValueError when an expert has no copy, two on one rank, or one outside the width.
    """

    def __init__(self, owners: Owners, width: int, rank: int) -> None:
        self._rank, self._width = rank, width
        self._tables: list[CopyTable] = [copy_table(owners_E, width) for owners_E in owners]
        self._alone = [table.rank_C.astype(np.int64) for table in self._tables]
        self.layers, self.experts = len(owners), max(map(len, owners), default=0)
        self._recent_LE = [np.full(len(owners_E), UNSEEN) for owners_E in owners]

    def ranks(self, layer: int, ids_NK: np.ndarray, rows_W: Sequence[int]) -> np.ndarray:
        """The rank of every pair: int64 [N, K]. `rows_W` are the rows of each rank in this step."""
        copies = self._tables[layer]
        if not copies.is_free:
            alone_NK: np.ndarray = self._alone[layer][ids_NK]
            return alone_NK
        if not ids_NK.size:
            return np.empty(ids_NK.shape, dtype=np.int64)
        flat_P = ids_NK.reshape(-1)
        wanted_E = np.bincount(flat_P, minlength=len(copies.start_E1) - 1)
        share_C = self._shares(layer, wanted_E, np.asarray(rows_W) * ids_NK.shape[1])
        phase = (self._rank + 0.5) / self._width
        return assign_copies(flat_P, share_C, copies, phase).reshape(ids_NK.shape)

    def _shares(self, layer: int, wanted_E: np.ndarray, pairs_W: np.ndarray) -> np.ndarray:
        """[C] which share of this rank's own pairs of its expert each copy gets."""
        recent_E = self._recent_LE[layer]
        recent_E *= REMEMBER
        recent_E += wanted_E
        likely_E = recent_E / recent_E.sum()
        others = pairs_W.sum() - pairs_W[self._rank]
        copies = self._tables[layer]
        load_E = wanted_E + others * likely_E
        return home_first(wanted_E, (load_E, likely_E, pairs_W), copies, self._rank)


def home_first(
    wanted_E: np.ndarray,
    world: tuple[np.ndarray, np.ndarray, np.ndarray],
    copies: CopyTable,
    rank: int,
) -> np.ndarray:
    """[C] shares of this rank's pairs: its own copy's levelled share is filled with them first.

    Shapes: wanted_E [E] own pairs; `world` is load_E [E] pairs of all ranks, likely_E [E] how they
    are spread (sums to 1), pairs_W [W] pairs of each rank. What does not fit here goes to the other
    copies as far as ranks that hold them leave room.
    """
    load_E, likely_E, pairs_W = world
    counts_E = np.diff(copies.start_E1)
    expert_C = np.repeat(np.arange(len(counts_E)), counts_E)
    share_C = split_shares(load_E, copies)
    quota_C = share_C * load_E[expert_C]
    is_here_C = copies.rank_C == rank
    supply_C = np.where(is_here_C, wanted_E[expert_C], pairs_W[copies.rank_C] * likely_E[expert_C])
    home_C = np.minimum(supply_C, quota_C)
    room_C = quota_C - home_C
    room_E = np.bincount(expert_C, weights=room_C, minlength=len(counts_E))
    mine_C = np.where(is_here_C, home_C, 0.0)
    left_E = wanted_E - np.bincount(expert_C, weights=mine_C, minlength=len(counts_E))
    has_room_C = room_E[expert_C] > 0
    away_C = np.where(has_room_C, room_C / np.where(has_room_C, room_E[expert_C], 1.0), share_C)
    mine_C += left_E[expert_C] * away_C
    total_C = wanted_E[expert_C]
    wanted_C: np.ndarray = np.where(total_C > 0, mine_C / np.maximum(total_C, 1), share_C)
    return wanted_C
