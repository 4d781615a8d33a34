"""How does a group that spans nodes exchange bytes? Each pair by the way that suits it.

Peers on this node are met through shared memory, the others through gloo; no descriptor and no
memory ever passes between nodes. Sends to other nodes are started first, so that they travel while
the node's own ranks meet.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ....core.errors import ExchangeBrokenError
from .base import Bounds
from .gloo import GlooExchange
from .shm import ShmExchange


class MixedExchange:
    """An Exchange whose ranks lie on several nodes.

    `local_ranks` are the group's ranks on this node, ascending: local rank i of `local` is rank
    local_ranks[i] of the group. `local` is None when this rank is alone on its node.
    """

    def __init__(
        self, local: ShmExchange | None, local_ranks: Sequence[int], remote: GlooExchange
    ) -> None:
        self.rank, self.size = remote.rank, remote.size
        self._local, self._local_ranks, self._remote = local, tuple(local_ranks), remote

    def gather_control(
        self, mine: Sequence[int], deadline_s: float | None = None
    ) -> list[tuple[int, ...]]:
        """See Exchange.gather_control."""
        with self._breaking_together():
            self._remote.post_control(mine)
            near = self._local.gather_control(mine, deadline_s) if self._local else []
            words = self._remote.collect_control(mine, deadline_s)
        for rank, given in zip(self._local_ranks, near, strict=False):
            words[rank] = given
        return words

    def all_to_all(self, parts: Sequence[torch.Tensor], bounds: Bounds) -> list[torch.Tensor]:
        """See Exchange.all_to_all."""
        with self._breaking_together():
            self._remote.post(parts, bounds)
            near = self._near(parts, bounds)
            received = self._remote.collect(parts)
        for rank, given in zip(self._local_ranks, near, strict=False):
            received[rank] = given
        return received

    def doorbells(self) -> Sequence[int]:
        """See Exchange.doorbells: those of the ranks on this node."""
        return self._local.doorbells() if self._local else ()

    def abort(self, reason: str) -> None:
        """See Exchange.abort."""
        if self._local:
            self._local.abort(reason)
        self._remote.abort(reason)

    def close(self) -> None:
        """See Exchange.close."""
        if self._local:
            self._local.close()
        self._remote.close()

    @contextmanager
    def _breaking_together(self) -> Iterator[None]:
        """A half that breaks takes the other along, so that no peer waits for a rank that left."""
        try:
            yield
        except ExchangeBrokenError as error:
            self.abort(error.message)
            raise

    def _near(self, parts: Sequence[torch.Tensor], bounds: Bounds) -> list[torch.Tensor]:
        if self._local is None:
            return []
        ranks = self._local_ranks
        near = Bounds(
            [bounds.out_max[rank] for rank in ranks], [bounds.in_max[rank] for rank in ranks]
        )
        return self._local.all_to_all([parts[rank] for rank in ranks], near)
