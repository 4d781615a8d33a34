"""How are the routed experts computed when they lie on several ranks? Two exchanges per MoE layer.

Dispatch: a row goes once to every rank that owns any of its experts, together with the (row,
expert) pairs wanted from it. Combine: every pair's result comes home unsummed. The home rank adds
a row's results in expert-id order, so the bits are those of one rank that owns everything
(`moe.LocalMoe`), whatever the width. That is why combine carries a row per pair, never a partial
sum.

Of the copies of an expert the home rank chooses one for every pair (`split.CopySplit`); whoever it
is, the result has the same bits. Bounds of what a peer may send come from the step's control words
(rows per rank) and hold for every choice, so that a rank without rows sends and costs nothing.

Wire of a dispatch part: int32 rows R, int32 pairs P, int32 row[P], int32 expert[P], then x [R, H].
Wire of a combine part: y [P, H], in the order of the pairs.
Legend: N rows, K experts per row, P pairs, H hidden, L MoE layers, E experts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ProtocolError
from ...kernels import experts as expert_kernels
from .comm.base import Bounds, Exchange
from .moe import ExpertSlots
from .split import CopySplit, Owners

_HEAD_WORDS = 2


@dataclass(frozen=True)
class _Wanted:
    """What this rank wants from one peer: rows of x, and pairs over them."""

    row_R: np.ndarray  # rows of x that travel
    pair_row_P: np.ndarray  # index into row_R
    pair_expert_P: np.ndarray
    home_P: np.ndarray  # n * K + k of every pair: where its result belongs


@dataclass(frozen=True)
class _Given:
    """What one peer wants from this rank."""

    x_RH: Tensor
    row_P: np.ndarray
    expert_P: np.ndarray


class DistributedMoe:
    """A MoeRunner over an Exchange. One object per epoch; used by the engine thread only."""

    def __init__(self, exchange: Exchange, slots: ExpertSlots, owners: Owners) -> None:
        """`owners[l][e]` are the ranks that hold expert e of layer l, as in a Placement."""
        self.exchange, self.slots = exchange, slots
        self._split = CopySplit(owners, exchange.size, exchange.rank)
        self._rows = [0] * exchange.size
        self.computed_LE = np.zeros((self._split.layers, self._split.experts), dtype=np.int64)
        self.rows_sent = np.zeros(exchange.size, dtype=np.int64)
        self._exchanged_s = 0.0

    def begin_step(self, rows: Sequence[int]) -> None:
        """Tell how many rows every rank has in the coming forward pass."""
        self._rows = list(rows)

    def run(self, layer: int, x_NH: Tensor, ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """See MoeRunner.run. Raises ExchangeBrokenError when a peer is gone."""
        count_N, count_K = ids_NK.shape
        ids = ids_NK.numpy()
        rank_NK = self._split.ranks(layer, ids, self._rows)
        wanted = [_wanted(ids, rank_NK == rank) for rank in range(self.exchange.size)]
        given = self._dispatch(x_NH, wanted, count_K)
        results = self._compute(layer, given)
        y_NKH = self._combine(results, wanted, x_NH.new_empty(count_N * count_K, x_NH.shape[1]))
        if count_N == 0:
            return torch.zeros_like(x_NH)
        return expert_kernels.weighted_sum_in_id_order(
            y_NKH.view(count_N, count_K, -1), ids_NK, weights_NK
        )

    def take_exchanged_s(self) -> float:
        """Seconds spent in exchanges since the last call, waiting for peers included."""
        spent, self._exchanged_s = self._exchanged_s, 0.0
        return spent

    def _exchange(self, parts: list[Tensor], bounds: Bounds) -> list[Tensor]:
        started = time.monotonic()
        received = self.exchange.all_to_all(parts, bounds)
        self._exchanged_s += time.monotonic() - started
        return received

    def _dispatch(self, x_NH: Tensor, wanted: list[_Wanted], count_K: int) -> list[_Given]:
        me = self.exchange.rank
        nothing = torch.empty(0, dtype=torch.uint8)
        parts = [nothing] * self.exchange.size
        if x_NH.shape[0]:
            for rank, want in enumerate(wanted):
                if rank != me:
                    parts[rank] = _pack(x_NH, want)
                    self.rows_sent[rank] += len(want.row_R)
        row_bytes = x_NH.shape[1] * x_NH.element_size()
        bounds = [_part_bytes(rows, rows * count_K, row_bytes) for rows in self._rows]
        received = self._exchange(parts, Bounds([bounds[me]] * len(bounds), bounds))
        own = wanted[me]
        given = [_unpack(part, x_NH) for part in received]
        given[me] = _Given(x_NH, own.row_R[own.pair_row_P], own.pair_expert_P)
        return given

    def _compute(self, layer: int, given: list[_Given]) -> list[Tensor]:
        """The results of every peer's pairs, [P, H] each; one pass over all of them."""
        starts = np.cumsum([0] + [each.x_RH.shape[0] for each in given])
        row_P = np.concatenate(
            [each.row_P + start for each, start in zip(given, starts, strict=False)]
        )
        expert_P = np.concatenate([each.expert_P for each in given])
        x_RH = torch.cat([each.x_RH for each in given])
        if row_P.size:
            self.computed_LE[layer] += np.bincount(expert_P, minlength=self._split.experts)
            y_PH = self.slots.compute(layer, x_RH, row_P, expert_P)
        else:
            y_PH = x_RH.new_empty(0, x_RH.shape[1])
        return list(y_PH.split([len(each.row_P) for each in given]))

    def _combine(self, results: list[Tensor], wanted: list[_Wanted], y_PH: Tensor) -> Tensor:
        """Send every peer its results; put what comes home at the place of its pair."""
        row_bytes = y_PH.shape[1] * y_PH.element_size()
        parts = [result.contiguous().view(torch.uint8).reshape(-1) for result in results]
        bounds = Bounds(
            [part.numel() for part in parts], [len(want.home_P) * row_bytes for want in wanted]
        )
        received = self._exchange(parts, bounds)
        for part, want in zip(received, wanted, strict=True):
            if part.numel() != len(want.home_P) * row_bytes:
                raise ProtocolError(
                    f"{part.numel()} B of results for {len(want.home_P)} pairs of {row_bytes} B"
                )
            if part.numel():
                rows = part.view(y_PH.dtype).view(-1, y_PH.shape[1])
                y_PH[torch.from_numpy(want.home_P)] = rows
        return y_PH


def _wanted(ids_NK: np.ndarray, here_NK: np.ndarray) -> _Wanted:
    """The pairs that go to one rank: those where `here_NK` is true."""
    row_P, k_P = np.nonzero(here_NK)
    row_R, pair_row_P = np.unique(row_P, return_inverse=True)
    return _Wanted(row_R, pair_row_P, ids_NK[row_P, k_P], row_P * ids_NK.shape[1] + k_P)


def _part_bytes(rows: int, pairs: int, row_bytes: int) -> int:
    return 4 * (_HEAD_WORDS + 2 * pairs) + rows * row_bytes if rows else 0


def exchange_bytes_max(rows: int, width: int, count_K: int, row_bytes: int) -> int:
    """The most one rank sends in one exchange when every rank has at most `rows` rows."""
    pairs = rows * count_K
    part = max(_part_bytes(max(rows, 1), pairs, row_bytes), pairs * row_bytes)
    return width * (part + 64)


def _pack(x_NH: Tensor, want: _Wanted) -> Tensor:
    rows, pairs = len(want.row_R), len(want.home_P)
    head = 4 * (_HEAD_WORDS + 2 * pairs)
    hidden = x_NH.shape[1]
    part = torch.empty(head + rows * hidden * x_NH.element_size(), dtype=torch.uint8)
    words = part[:head].numpy().view(np.int32)
    words[0], words[1] = rows, pairs
    words[_HEAD_WORDS : _HEAD_WORDS + pairs] = want.pair_row_P
    words[_HEAD_WORDS + pairs :] = want.pair_expert_P
    if rows:
        out_RH = part[head:].view(x_NH.dtype).view(rows, hidden)
        torch.index_select(x_NH, 0, torch.from_numpy(want.row_R), out=out_RH)
    return part


def _unpack(part: Tensor, x_NH: Tensor) -> _Given:
    """Inverse of `_pack`; raises ProtocolError when lengths do not agree."""
    hidden = x_NH.shape[1]
    none = np.empty(0, dtype=np.int64)
    if part.numel() == 0:
        return _Given(x_NH.new_empty(0, hidden), none, none)
    rows, pairs = part[: 4 * _HEAD_WORDS].numpy().view(np.int32).tolist()
    head = 4 * (_HEAD_WORDS + 2 * pairs)
    if rows < 0 or pairs < 0 or part.numel() != head + rows * hidden * x_NH.element_size():
        raise ProtocolError(f"a dispatch part of {part.numel()} B for {rows} rows, {pairs} pairs")
    words = part[:head].numpy().view(np.int32)[_HEAD_WORDS:].astype(np.int64)
    if pairs and not 0 <= words[:pairs].min() <= words[:pairs].max() < rows:
        raise ProtocolError(f"a dispatch part names a row outside its {rows} rows")
    return _Given(part[head:].view(x_NH.dtype).view(rows, hidden), words[:pairs], words[pairs:])
