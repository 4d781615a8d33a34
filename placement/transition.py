"""Given where the experts are and a wanted width, what is the next placement and the way there?

`plan_transition` is the pure planner behind create, scale, heal and delete: same input, same plan,
no clock, no files. It gives back a `TransitionPlan`, or `Infeasible` with the limits that bind.
Laws (tests/property): every expert has a live copy at every instant; counts per layer and rank are
floor or ceil; totals per rank are as even as the fewest moves allow; bytes moved equal the bound of
`quotas.lower_bound_moves`; no device ever holds more than its HBM, old copies and incoming ones
added.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.plan import (
    DeviceId,
    Infeasible,
    Part,
    Placement,
    Prediction,
    Step,
    StepKind,
    TransitionKind,
    TransitionPlan,
    joining_ranks,
)
from . import devices, experts, quotas, time_model
from .explain import over_hbm, too_few_devices
from .memory_model import Demand, DeviceMemory, held_bytes
from .steps import Sizes, build_steps

MOVES = (StepKind.COPY, StepKind.LOAD)


@dataclass(frozen=True, slots=True)
class TransitionInput:
    """Everything the planner may know."""

    kind: TransitionKind
    model: str
    demand: Demand
    memories: tuple[DeviceMemory, ...]  # every live device that the model may use
    old: Placement | None
    width: int
    lost: frozenset[DeviceId] = frozenset()  # devices of `old` whose pages are gone
    restarted: frozenset[DeviceId] = frozenset()  # worker gone, pages still held by the HMM
    # Numbers that an abandoned attempt used are never used again: its late messages must not be
    # taken for those of the attempt that follows it.
    epoch_floor: int = 0  # the highest epoch that any transition of the model has had
    instance_floor: int = 0  # the highest worker instance that was ever seen
    rates: time_model.Rates = time_model.MEASURED_RATES
    loads: tuple[tuple[float, ...], ...] = ()  # [L][E] tokens per expert; empty when unknown
    is_gentle: bool = False  # prepared in what cores have left: longer, and at less cost to others


def plan_transition(wanted: TransitionInput) -> TransitionPlan | Infeasible:
    """The placement to reach and the ordered steps, or why there is none.

    Cost: about 0.3 s for 61 layers x 256 experts x 72 ranks.
    """
    if wanted.kind is TransitionKind.DELETE:
        return _plan_delete(wanted)
    usable = {m.device: m for m in wanted.memories if m.device not in wanted.lost}
    old_ranks = wanted.old.ranks if wanted.old else ()
    ranks = devices.choose_ranks(old_ranks, usable, wanted.width)
    if wanted.width < 1 or len(ranks) < wanted.width:
        return too_few_devices(wanted.width, tuple(usable))
    held = experts.holdings(wanted.old, wanted.demand.expert_counts, ranks, wanted.lost)
    counts_LW = held.counts(wanted.width)
    quotas_LW = quotas.choose_quotas(wanted.demand.expert_counts, counts_LW)
    owners = experts.assign(held, quotas_LW, ranks)
    if _are_loads_known(wanted):
        owners = experts.rebalanced(owners, held, wanted.loads, wanted.width)
    new = Placement(
        model=wanted.model,
        epoch=_next_epoch(wanted),
        ranks=ranks,
        owners=owners,
        instances=_instances(wanted, ranks),
    )
    bound = quotas.lower_bound_moves(wanted.demand.expert_counts, counts_LW)
    return _finish(wanted, new, bound * wanted.demand.expert_bytes)


def _are_loads_known(wanted: TransitionInput) -> bool:
    """Whether there is a load for every expert: from another model's shape they would mislead."""
    return tuple(map(len, wanted.loads)) == tuple(wanted.demand.expert_counts)


def _next_epoch(wanted: TransitionInput) -> int:
    return max(wanted.epoch_floor, wanted.old.epoch if wanted.old else 0) + 1


def _instances(wanted: TransitionInput, ranks: Sequence[DeviceId]) -> tuple[int, ...]:
    """Staying workers keep their number; a worker that starts gets one that was never used."""
    old = wanted.old
    running = dict(zip(old.ranks, old.instances, strict=True)) if old else {}
    fresh = max((wanted.instance_floor, *running.values())) + 1
    return tuple(
        fresh if device not in running or device in wanted.restarted else running[device]
        for device in ranks
    )


def _finish(
    wanted: TransitionInput, new: Placement, bound_bytes: int
) -> TransitionPlan | Infeasible:
    sizes = Sizes(wanted.demand.expert_bytes, wanted.demand.shared_bytes)
    steps = build_steps(wanted.old, new, wanted.lost, sizes)
    memories = {memory.device: memory for memory in wanted.memories}
    slots = _peak_slots(wanted, steps)
    excess = {
        device: held_bytes(wanted.demand, memories[device], slots[device])
        for device in new.ranks
        if held_bytes(wanted.demand, memories[device], slots[device]) > memories[device].free_bytes
    }
    if excess:
        return over_hbm(wanted.demand, wanted.width, memories, excess)
    peak = {
        str(device): held_bytes(wanted.demand, memories[device], count)
        for device, count in sorted(slots.items())
        if device in memories
    }
    return TransitionPlan(
        wanted.kind, wanted.old, new, steps, _predict(wanted, new, steps, bound_bytes, peak)
    )


def _peak_slots(wanted: TransitionInput, steps: Sequence[Step]) -> Counter[DeviceId]:
    """Expert copies per device at the worst instant: all old ones and all incoming ones."""
    slots: Counter[DeviceId] = Counter()
    if wanted.old is not None:
        for experts_E in wanted.old.owners:
            for holders in experts_E:
                slots.update(wanted.old.ranks[rank] for rank in holders)
    for device in wanted.lost:
        slots.pop(device, None)
    slots.update(s.target for s in steps if s.part is Part.EXPERT and s.kind in MOVES)
    return slots


def _predict(
    wanted: TransitionInput,
    new: Placement,
    steps: Sequence[Step],
    bound_bytes: int,
    peak: dict[str, int],
) -> Prediction:
    joining = frozenset(new.ranks[rank] for rank in joining_ranks(wanted.old, new))
    moves = [step for step in steps if step.kind in MOVES]
    prepare_s = time_model.prepare_s(steps, joining, wanted.rates, is_gentle=wanted.is_gentle)
    return Prediction(
        bytes_moved=sum(step.bytes for step in moves if step.part is Part.EXPERT),
        bytes_lower_bound=bound_bytes,
        shared_bytes_moved=sum(step.bytes for step in moves if step.part is Part.SHARED),
        peak_bytes=peak,
        prepare_s=round(prepare_s, 6),
        pause_ms=round(time_model.pause_ms(wanted.kind, prepare_s, wanted.rates), 6),
        steps_cross_node=sum(step.crosses_node for step in moves),
    )


def _plan_delete(wanted: TransitionInput) -> TransitionPlan:
    """An epoch without ranks: every device leaves and gives everything back."""
    if wanted.old is None:
        raise ValueError(f"model {wanted.model!r} has no placement to delete")
    new = Placement(wanted.model, _next_epoch(wanted), (), (), ())
    sizes = Sizes(wanted.demand.expert_bytes, wanted.demand.shared_bytes)
    steps = build_steps(wanted.old, new, wanted.lost, sizes)
    prediction = Prediction(0, 0, 0, {}, 0.0, 0.0, 0)
    return TransitionPlan(wanted.kind, wanted.old, new, steps, prediction)
