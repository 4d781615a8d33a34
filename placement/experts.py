"""Which expert copy lives on which rank, so that what can stay stays?

Pure assignment under given quotas: it never decides how many experts a rank holds (`quotas`) and
never what happens on the way (`steps`). Each expert goes to exactly one rank. Experts stay where
they are as far as the quota allows; the others go first to a rank on the node that holds them (a
copy inside a node is ten times faster than one between nodes), taking from the fullest givers in
turn so that no single device feeds all the others.

Legend: L layers, E experts, W ranks of the new placement.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.plan import DeviceId, Placement
from .balance import balance_layer
from .quotas import Counts

Owners = tuple[tuple[tuple[int, ...], ...], ...]
Loads = Sequence[Sequence[float]]  # [L][E] work per expert, in any unit


@dataclass(frozen=True, slots=True)
class Holdings:
    """Where every expert is now, seen from the new ranks.

    `rank_LE[l][e]` is the new rank whose device holds it, or None; `device_LE[l][e]` the live
    device that holds it, or None when its pages are lost (or the model is new).
    """

    rank_LE: tuple[tuple[int | None, ...], ...]
    device_LE: tuple[tuple[DeviceId | None, ...], ...]

    def counts(self, width: int) -> Counts:
        """[L, W] experts that each new rank's device holds now."""
        counts_LW = np.zeros((len(self.rank_LE), width), dtype=np.int64)
        for layer, ranks_E in enumerate(self.rank_LE):
            for rank in ranks_E:
                if rank is not None:
                    counts_LW[layer, rank] += 1
        return counts_LW


def holdings(
    old: Placement | None,
    expert_counts: Sequence[int],
    ranks: Sequence[DeviceId],
    lost: frozenset[DeviceId],
) -> Holdings:
    """Read the old placement with the eyes of the new ranks; pages on `lost` devices are gone."""
    rank_of = {device: rank for rank, device in enumerate(ranks)}
    rank_LE: list[tuple[int | None, ...]] = []
    device_LE: list[tuple[DeviceId | None, ...]] = []
    for layer, count in enumerate(expert_counts):
        devices = [_live_holder(old, layer, expert, rank_of, lost) for expert in range(count)]
        device_LE.append(tuple(devices))
        rank_LE.append(tuple(None if d is None else rank_of.get(d) for d in devices))
    return Holdings(tuple(rank_LE), tuple(device_LE))


def _live_holder(
    old: Placement | None,
    layer: int,
    expert: int,
    rank_of: dict[DeviceId, int],
    lost: frozenset[DeviceId],
) -> DeviceId | None:
    """A live device with a copy, preferably one that keeps a rank."""
    if old is None:
        return None
    devices = [old.ranks[holder] for holder in old.owners[layer][expert]]
    live = [device for device in devices if device not in lost]
    return next((device for device in live if device in rank_of), live[0] if live else None)


def rebalanced(owners: Owners, held: Holdings, loads_LE: Loads, width: int) -> Owners:
    """The owners with others moved in their place, so that the fullest rank has less to do.

    Moves and counts stay the same. Layers without any load stay as they are.
    """
    return tuple(
        tuple(
            (owner,)
            for owner in balance_layer(
                [holders[0] for holders in owners_E], held.rank_LE[layer], loads_LE[layer], width
            )
        )
        if any(loads_LE[layer])
        else owners_E
        for layer, owners_E in enumerate(owners)
    )


def assign(held: Holdings, quotas_LW: Counts, ranks: Sequence[DeviceId]) -> Owners:
    """Owners of every expert: [L][E] tuples of one rank, meeting the quotas exactly."""
    return tuple(
        _assign_layer(held.rank_LE[layer], held.device_LE[layer], quotas_LW[layer].tolist(), ranks)
        for layer in range(len(held.rank_LE))
    )


def _assign_layer(
    rank_E: Sequence[int | None],
    device_E: Sequence[DeviceId | None],
    quota_W: Sequence[int],
    ranks: Sequence[DeviceId],
) -> tuple[tuple[int, ...], ...]:
    owner_E: list[int | None] = [None] * len(rank_E)
    room_W = list(quota_W)
    for expert, rank in enumerate(rank_E):
        if rank is not None and room_W[rank] > 0:
            owner_E[expert] = rank
            room_W[rank] -= 1
    moving = _in_turns([e for e, owner in enumerate(owner_E) if owner is None], device_E)
    rest = [e for e in moving if not _place_near(e, device_E[e], owner_E, room_W, ranks)]
    free_ranks = [rank for rank, room in enumerate(room_W) for _ in range(room)]
    # Experts without a live copy (or of a new model) fill the ranks block by block, in id order.
    for expert, rank in zip(sorted(rest), free_ranks, strict=True):
        owner_E[expert] = rank
    return tuple((owner,) for owner in owner_E if owner is not None)


def _in_turns(experts: Sequence[int], device_E: Sequence[DeviceId | None]) -> list[int]:
    """The experts reordered so that their present holders alternate."""
    queues: dict[DeviceId | None, deque[int]] = {}
    for expert in experts:
        queues.setdefault(device_E[expert], deque()).append(expert)
    ordered: list[int] = []
    while queues:
        for device in list(queues):
            ordered.append(queues[device].popleft())
            if not queues[device]:
                del queues[device]
    return ordered


def _place_near(
    expert: int,
    device: DeviceId | None,
    owner_E: list[int | None],
    room_W: list[int],
    ranks: Sequence[DeviceId],
) -> bool:
    """Give the expert to the roomiest rank of its holder's node; False when that node is full."""
    if device is None:
        return False
    near = [r for r, room in enumerate(room_W) if room > 0 and ranks[r].node == device.node]
    if not near:
        return False
    rank = max(near, key=lambda r: (room_W[r], -r))
    owner_E[expert] = rank
    room_W[rank] -= 1
    return True
