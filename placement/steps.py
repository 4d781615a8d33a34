"""Which ordered acts turn one placement into the next?

Pure translation of (old, new) into `core.plan.Step`s; it decides nothing about who holds what.
Order:

    KEEP ... | COPY or LOAD shared weights of joining ranks | COPY, LOAD experts ... | FREE ...
    nothing happens  `- PREPARE, beside full service -------------------------------'  RETIRE

Copies precede frees, so that every expert has a live copy at every instant; moves are interleaved
over their sources, so that no link stands idle while another has a queue.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..core.plan import DeviceId, Part, Placement, Step, StepKind
from .devices import device_key


@dataclass(frozen=True, slots=True)
class Sizes:
    """Real bytes of what moves."""

    expert_bytes: int
    shared_bytes: int


def build_steps(
    old: Placement | None, new: Placement, lost: frozenset[DeviceId], sizes: Sizes
) -> tuple[Step, ...]:
    """Every step of the change, ordered as drawn above. `lost` devices hold nothing any more."""
    experts = list(_expert_steps(old, new, lost, sizes.expert_bytes))
    shared = list(_shared_steps(old, new, lost, sizes.shared_bytes))
    keeps = [step for step in shared + experts if step.kind is StepKind.KEEP]
    moves = _interleaved(step for step in experts if step.kind is not StepKind.KEEP)
    shared_moves = [step for step in shared if step.kind is not StepKind.KEEP]
    frees = _free_steps(old, new, lost, sizes)
    return (*keeps, *shared_moves, *moves, *frees)


def _expert_steps(
    old: Placement | None, new: Placement, lost: frozenset[DeviceId], expert_bytes: int
) -> Iterator[Step]:
    for layer, experts in enumerate(new.owners):
        for expert, holders in enumerate(experts):
            before = _live_devices(old, layer, expert, lost)
            for rank in holders:
                target = new.ranks[rank]
                kind, source = _source_of(target, before)
                yield Step(kind, Part.EXPERT, target, expert_bytes, layer, expert, source)


def _live_devices(
    old: Placement | None, layer: int, expert: int, lost: frozenset[DeviceId]
) -> list[DeviceId]:
    if old is None:
        return []
    devices = (old.ranks[rank] for rank in old.owners[layer][expert])
    return [device for device in devices if device not in lost]


def _source_of(target: DeviceId, holders: Sequence[DeviceId]) -> tuple[StepKind, DeviceId | None]:
    """KEEP where it is, COPY from the nearest live holder, LOAD when there is none."""
    if target in holders:
        return StepKind.KEEP, target
    if not holders:
        return StepKind.LOAD, None
    return StepKind.COPY, min(holders, key=lambda d: (d.node != target.node, device_key(d)))


def _shared_steps(
    old: Placement | None, new: Placement, lost: frozenset[DeviceId], shared_bytes: int
) -> Iterator[Step]:
    """Shared weights come from the holder on the same node that feeds the fewest others."""
    holders = [d for d in old.ranks if d not in lost] if old is not None else []
    feeds = dict.fromkeys(holders, 0)
    for target in new.ranks:
        if target in feeds:
            yield Step(StepKind.KEEP, Part.SHARED, target, shared_bytes, source=target)
            continue
        if not feeds:
            yield Step(StepKind.LOAD, Part.SHARED, target, shared_bytes)
            continue
        source = min(holders, key=lambda d: (d.node != target.node, feeds[d], device_key(d)))
        feeds[source] += 1
        yield Step(StepKind.COPY, Part.SHARED, target, shared_bytes, source=source)


def _interleaved(moves: Iterable[Step]) -> list[Step]:
    """Moves with their sources in turn; moves from one source keep their order."""
    seen: dict[DeviceId | None, int] = {}
    keyed = []
    for index, step in enumerate(moves):
        turn = seen.get(step.source, 0)
        seen[step.source] = turn + 1
        keyed.append((turn, index, step))
    return [step for _, _, step in sorted(keyed, key=lambda item: item[:2])]


def _free_steps(
    old: Placement | None, new: Placement, lost: frozenset[DeviceId], sizes: Sizes
) -> list[Step]:
    """What the old epoch held and the new one does not. A lost device has nothing to free."""
    if old is None:
        return []
    frees = []
    for rank, device in enumerate(old.ranks):
        if device in lost:
            continue
        new_rank = new.rank_of(device)
        for layer, expert in old.experts_on(rank):
            if new_rank is None or new_rank not in new.owners[layer][expert]:
                frees.append(
                    Step(
                        StepKind.FREE,
                        Part.EXPERT,
                        device,
                        sizes.expert_bytes,
                        layer,
                        expert,
                        device,
                    )
                )
        if new_rank is None:
            frees.append(
                Step(StepKind.FREE, Part.SHARED, device, sizes.shared_bytes, source=device)
            )
    return frees
