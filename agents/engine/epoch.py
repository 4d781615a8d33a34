"""What does the engine's thread need to serve an epoch? One object, entered by one reference."""

from dataclasses import dataclass

from ...core.plan import Placement
from .comm.base import Exchange
from .dispatch import DistributedMoe
from .engine import Engine
from .schedule import Limits


@dataclass
class Epoch:
    """One epoch at one rank. `engine` is set where the worker joins."""

    number: int
    operation_id: str
    placement: Placement
    rank: int
    exchange: Exchange
    moe: DistributedMoe
    engine: Engine | None
    limits: Limits | None = None  # what the engine takes at the flip; None: it keeps its own
    threads: int = 1
    _sent_across: int = 0

    def sent_across(self) -> bool:
        """Whether rows went to another node since the last call."""
        node = self.placement.ranks[self.rank].node
        far = [rank for rank, device in enumerate(self.placement.ranks) if device.node != node]
        before, self._sent_across = self._sent_across, int(self.moe.rows_sent[far].sum())
        return self._sent_across > before
