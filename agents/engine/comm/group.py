"""Which Exchange does a rank of a placement need, and how is it formed?

One rank: nothing. One node: shared memory alone, no gloo at all. Several nodes: shared memory with
the ranks of this node, gloo with the others. Every rank of the epoch must call `form` for it to
return where gloo is needed; the HMM's channel waits for nobody.
"""

from dataclasses import dataclass

from ....core.plan import Placement
from ....memory.hmm.channels import BYTES_MAX
from ....memory.hmm.client import HmmClient
from .base import Exchange, SoloExchange
from .gloo import GlooExchange, GlooGroup, Rendezvous
from .mixed import MixedExchange
from .shm import ShmExchange, region_bytes


@dataclass(frozen=True)
class GroupPlan:
    """Everything that says which group to form."""

    name: str  # unique to the epoch and the attempt: the operation id
    placement: Placement
    rank: int
    payload_bytes_max: int  # the most that one rank sends in one call
    store_address: str
    bind_address: str
    deadline_s: float  # to meet; the group's own deadline per call is the exchange's

    @property
    def local_ranks(self) -> tuple[int, ...]:
        """Ranks on this rank's node, ascending."""
        node = self.placement.ranks[self.rank].node
        return tuple(
            rank for rank, device in enumerate(self.placement.ranks) if device.node == node
        )

    @property
    def channel_name(self) -> str:
        """The HMM's name of this node's part of the group."""
        return f"{self.placement.model}:{self.placement.epoch}:{self.name}"[:200]


def form(plan: GroupPlan, hmm: HmmClient) -> Exchange:
    """Form the group. Raises ExchangeBrokenError when a peer does not come in time."""
    if plan.placement.width == 1:
        return SoloExchange()
    local = _form_local(plan, hmm)
    if len(plan.local_ranks) == plan.placement.width:
        assert local is not None
        return local
    try:
        group = GlooGroup(
            Rendezvous(
                plan.store_address,
                f"{plan.name}/{plan.placement.epoch}",
                plan.rank,
                plan.placement.width,
                plan.bind_address,
            ),
            plan.deadline_s,
        )
    except BaseException:
        if local is not None:
            local.close()
        raise
    far = [rank for rank in range(plan.placement.width) if rank not in plan.local_ranks]
    return MixedExchange(local, plan.local_ranks, GlooExchange(group, far))


def _form_local(plan: GroupPlan, hmm: HmmClient) -> ShmExchange | None:
    ranks = plan.local_ranks
    if len(ranks) == 1:
        return None
    # All ranks of the node must ask for the same size, and the HMM bounds a channel.
    size = min(region_bytes(plan.payload_bytes_max), BYTES_MAX // len(ranks) // 4096 * 4096)
    channel = hmm.channel(plan.channel_name, len(ranks), size)
    return ShmExchange(channel, ranks.index(plan.rank), len(ranks), size)
