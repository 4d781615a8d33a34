"""From a snapshot to a planned transition: what the planner needs, and the record it becomes.

Pure. The same functions answer a dry run of the API and decide in the reconcile loop, so a
prediction that was shown is the prediction that is executed, unless the fleet changed in between.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..core.dtypes import bytes_held
from ..core.facts import ModelFacts
from ..core.plan import (
    DeviceId,
    Infeasible,
    Pace,
    Phase,
    Placement,
    StepKind,
    TransitionKind,
    TransitionPlan,
    gives_way,
)
from ..core.records import DeviceRecord, SpecRecord, TransitionRecord, to_json
from ..core.spec import ClusterSpec, ModelSpec, cluster_spec_from_plain, model_spec_from_plain
from ..placement.memory_model import Demand, DeviceMemory, held_bytes
from ..placement.transition import TransitionInput, plan_transition
from .config import Limits
from .model_facts import Facts, NoFacts
from .observe import Snapshot

ATTEMPT_MARK = (
    "~"  # no operation id of a client contains it, so attempts never collide with intents
)
PLANS_KEPT = 2  # one of a model that is asked for, one of another; a plan may be megabytes


@dataclass(frozen=True, slots=True)
class Wish:
    """A change that somebody wants planned."""

    kind: TransitionKind
    model: str
    spec: ModelSpec
    width: int
    old: Placement | None
    lost: frozenset[DeviceId] = frozenset()
    restarted: frozenset[DeviceId] = frozenset()
    pace: Pace = Pace.GENTLE


def plan_wish(wish: Wish, snapshot: Snapshot, facts: Facts) -> TransitionPlan | Infeasible:
    """Plan against the live nodes of the snapshot."""
    return plan_on(wish, live_devices(snapshot), snapshot, facts)


def plan_declared(wish: Wish, snapshot: Snapshot, facts: Facts) -> TransitionPlan | Infeasible:
    """Plan against live and declared nodes: what will be possible once all of them are up."""
    devices = declared_devices(snapshot) | live_devices(snapshot)
    return plan_on(wish, devices, snapshot, facts)


def plan_on(
    wish: Wish, devices: Mapping[DeviceId, DeviceRecord], snapshot: Snapshot, facts: Facts
) -> TransitionPlan | Infeasible:
    """Plan against these devices."""
    known = facts.get(wish.spec.source.path)
    if not isinstance(known, ModelFacts):
        if wish.kind is not TransitionKind.DELETE:
            return Infeasible((known.message if known else "the checkpoint was not read yet",))
        demand = _nothing(wish.old)
    else:
        demand = demand_of(wish.spec, known, devices)
        if wish.old is not None and wish.kind is not TransitionKind.DELETE:
            placed = tuple(len(experts) for experts in wish.old.owners)
            if placed != demand.expert_counts:
                return Infeasible(
                    (f"the checkpoint has experts {demand.expert_counts}, placed are {placed}",),
                    "delete the model and apply it again",
                )
    return planned(
        TransitionInput(
            kind=wish.kind,
            model=wish.model,
            demand=demand,
            memories=memories(wish.model, devices, snapshot, facts),
            old=wish.old,
            width=wish.width,
            lost=wish.lost,
            restarted=wish.restarted,
            epoch_floor=_epoch_floor(wish.model, snapshot),
            instance_floor=_instance_floor(wish.model, snapshot),
            loads=loads_of(wish.model, snapshot),
            is_gentle=gives_way(wish.kind, wish.pace),
        )
    )


# Who admits a change plans it, and the loop plans the same one moment later: it is worked out once.
planned = lru_cache(PLANS_KEPT)(plan_transition)


def base_placement(model: str, snapshot: Snapshot) -> Placement | None:
    """The placement that a change will start from: where a running transition leads, if any."""
    running = snapshot.running(model)
    placed = snapshot.placements.get(model)
    if running is not None and running.value.phase in (Phase.PREPARE, Phase.COMMIT, Phase.RETIRE):
        return running.value.new if running.value.new.ranks else None
    return placed.value if placed else None


def loads_of(model: str, snapshot: Snapshot) -> tuple[tuple[float, ...], ...]:
    """[L][E] tokens that each expert computed lately, over all ranks; empty while nobody told."""
    told = [
        worker.expert_tokens
        for node in snapshot.stats.values()
        for worker in node.workers
        if worker.model == model and worker.expert_tokens
    ]
    shapes = {tuple(map(len, tokens)) for tokens in told}
    if len(shapes) != 1:
        return ()
    return tuple(
        tuple(float(sum(tokens)) for tokens in zip(*layers, strict=True))
        for layers in zip(*told, strict=True)
    )


def demand_of(
    spec: ModelSpec, facts: ModelFacts, devices: Mapping[DeviceId, DeviceRecord]
) -> Demand:
    """Bytes of a model on these devices."""
    expert, shared = element_bytes(spec, facts, devices)
    return Demand(
        expert_counts=facts.experts_per_layer,
        expert_bytes=facts.expert_bytes(expert),
        shared_bytes=facts.shared_bytes(shared),
        kv_bytes=spec.memory.kv_per_device,
    )


def element_bytes(
    spec: ModelSpec, facts: ModelFacts, devices: Mapping[DeviceId, DeviceRecord]
) -> tuple[int, int]:
    """See `core.dtypes.bytes_held`."""
    is_cpu = any(device.kind == "cpu" for device in devices.values())
    return bytes_held(spec.engine.dtype, spec.precision, facts.dtype, is_cpu=is_cpu)


def _nothing(old: Placement | None) -> Demand:
    """Deleting needs no bytes: a model whose checkpoint is gone can still be removed."""
    counts = tuple(len(experts) for experts in old.owners) if old and old.owners else (1,)
    return Demand(counts, expert_bytes=1, shared_bytes=0, kv_bytes=0)


def live_devices(snapshot: Snapshot) -> dict[DeviceId, DeviceRecord]:
    """Devices of nodes that are alive."""
    return {
        DeviceId(name, device.id): device
        for name, node in sorted(snapshot.nodes.items())
        for device in node.devices
    }


def declared_devices(snapshot: Snapshot) -> dict[DeviceId, DeviceRecord]:
    """Devices that Cluster specs declare, whether their nodes are up or not."""
    devices = {}
    for (kind, _), seen in sorted(snapshot.specs.items()):
        if kind == "Cluster":
            devices.update(devices_of_spec(cluster_spec_from_plain(seen.value.spec)))
    return devices


def devices_of_spec(spec: ClusterSpec) -> dict[DeviceId, DeviceRecord]:
    """The devices that a Cluster spec declares."""
    return {
        DeviceId(node.name, d.id): DeviceRecord(d.id, d.kind, d.hbm, d.page_size)
        for node in spec.nodes
        for d in node.devices
    }


def memories(
    model: str, devices: Mapping[DeviceId, DeviceRecord], snapshot: Snapshot, facts: Facts
) -> tuple[DeviceMemory, ...]:
    """The devices with what other models hold on them, or are about to."""
    empty = {
        device: DeviceMemory(device, record.hbm_bytes, record.page_bytes)
        for device, record in devices.items()
    }
    taken: Counter[DeviceId] = Counter()
    for other in sorted(set(snapshot.placements) | set(snapshot.active)):
        if other != model:
            taken.update(_held_by(other, empty, snapshot, facts))
    return tuple(
        dataclasses.replace(memory, taken_bytes=taken[device]) for device, memory in empty.items()
    )


def _held_by(
    other: str, empty: Mapping[DeviceId, DeviceMemory], snapshot: Snapshot, facts: Facts
) -> dict[DeviceId, int]:
    """Bytes that another model holds per device: its peak while it changes."""
    held: dict[DeviceId, int] = {}
    placement = snapshot.placements.get(other)
    spec = snapshot.model_spec(other)
    if placement is not None and spec is not None:
        parsed = model_spec_from_plain(spec.value.spec)
        known = facts.get(parsed.source.path)
        if isinstance(known, ModelFacts):
            demand = demand_of(parsed, known, {d: _as_record(m) for d, m in empty.items()})
            for rank, device in enumerate(placement.value.ranks):
                if device in empty:
                    slots = sum(1 for _ in placement.value.experts_on(rank))
                    held[device] = held_bytes(demand, empty[device], slots)
    running = snapshot.running(other)
    if running is not None:
        for name, peak in running.value.prediction.peak_bytes.items():
            device = DeviceId.parse(name)
            held[device] = max(peak, held.get(device, 0))
    return held


def _as_record(memory: DeviceMemory) -> DeviceRecord:
    return DeviceRecord(memory.device.device, "cpu", memory.hbm_bytes, memory.page_bytes)


def _epoch_floor(model: str, snapshot: Snapshot) -> int:
    """The highest epoch that any kept transition of the model has named."""
    return max((t.new.epoch for t in snapshot.history(model)), default=0)


def _instance_floor(model: str, snapshot: Snapshot) -> int:
    """The highest instance number that was given out or seen."""
    seen = [worker.instance for worker in snapshot.workers.get(model, {}).values()]
    given = [number for t in snapshot.history(model) for number in t.new.instances]
    return max([*seen, *given], default=0)


@dataclass(frozen=True, slots=True)
class Intent:
    """Who wanted the transition, since when, and which attempt at it this is."""

    operation_id: str
    generation: int
    accepted_at: float
    attempt: int
    model_spec: dict[str, object]
    pace: Pace = Pace.GENTLE


def new_record(
    plan: TransitionPlan, intent: Intent, snapshot: Snapshot, now: float, limits: Limits
) -> TransitionRecord:
    """The journal entry with which a transition starts, in phase PREPARE."""
    leader = snapshot.nodes.get(plan.new.ranks[0].node) if plan.new.ranks else None
    record = TransitionRecord(
        operation_id=intent.operation_id,
        model=plan.new.model,
        kind=plan.kind,
        phase=Phase.PREPARE,
        generation=intent.generation,
        old=plan.old,
        new=plan.new,
        steps=plan.steps,
        prediction=plan.prediction,
        accepted_at=intent.accepted_at,
        phase_at={str(Phase.PREPARE): now},
        deadline_at=now + limits.prepare_s,
        store_address=leader.store_address if leader else "",
        model_spec=intent.model_spec,
        attempt=intent.attempt,
        pace=intent.pace,
    )
    if len(to_json(record)) <= limits.record_bytes_max:
        return record
    # A huge model: what stays where it is follows from the two placements, so it need not be
    # listed.
    moving = tuple(step for step in plan.steps if step.kind is not StepKind.KEEP)
    return dataclasses.replace(record, steps=moving)


def free_operation_id(base: str, snapshot: Snapshot) -> tuple[str, int]:
    """(id, attempt): the base itself, or the first attempt of it that has no record yet."""
    attempt, operation_id = 1, base
    while operation_id in snapshot.transitions:
        attempt += 1
        operation_id = f"{base}{ATTEMPT_MARK}{attempt}"
    return operation_id, attempt


def base_operation(operation_id: str) -> str:
    """The intent that an attempt belongs to."""
    return operation_id.partition(ATTEMPT_MARK)[0]


def spec_of(record: SpecRecord) -> ModelSpec:
    """The Model spec inside its record; it was checked when it was written."""
    return model_spec_from_plain(record.spec)


def why_no_facts(spec: ModelSpec, facts: Facts) -> NoFacts | None:
    """The reason why a checkpoint cannot be counted, if there is one."""
    known = facts.get(spec.source.path)
    return known if isinstance(known, NoFacts) else None
