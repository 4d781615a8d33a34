"""Placements, steps and transitions as plain data: what every floor means by a change of the fleet.

Standard library only, so that `placement`, `memory` and the engine can use it on a bare GPU box.
`to_json`/`from_json` are exact inverses; unknown fields are refused (a newer writer is a different
contract, see `core.records.from_json`).

Legend: L MoE layers, E experts of a layer, R ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class StepKind(StrEnum):
    """One act of a transition; every one has an inverse until COMMIT."""

    KEEP = "keep"  # the copy stays in its slot: nothing is done
    REMAP = "remap"  # the copy's pages move to another slot of the same device: no byte moves
    COPY = "copy"  # the copy's bytes travel from `source` to `target`
    LOAD = "load"  # the copy's bytes are read from the checkpoint at `target`
    FREE = "free"  # the copy's pages return to the pool of `source`, after COMMIT


class Part(StrEnum):
    """What a step is about."""

    EXPERT = "expert"  # one expert of one layer
    SHARED = "shared"  # every weight that is not a routed expert, whole, once per rank


class TransitionKind(StrEnum):
    """Why a placement changes; all of them run through the same phases."""

    CREATE = "create"
    SCALE = "scale"
    HEAL = "heal"
    DELETE = "delete"


class Pace(StrEnum):
    """How a change is prepared beside those who are served: it takes its time, or it hurries."""

    GENTLE = "gentle"
    PROMPT = "prompt"


def gives_way(kind: TransitionKind, pace: Pace) -> bool:
    """Whether PREPARE takes what cores have left: only a scale is prepared beside full service."""
    return kind is TransitionKind.SCALE and pace is Pace.GENTLE


class Phase(StrEnum):
    """The life of a transition; the legal moves stand in `core.transitions`."""

    PREPARE = "prepare"
    COMMIT = "commit"
    RETIRE = "retire"
    DONE = "done"
    FORFEIT = "forfeit"  # undoing what PREPARE did; the old epoch serves on
    FORFEITED = "forfeited"


@dataclass(frozen=True, slots=True, order=True)
class DeviceId:
    """A device of the fleet."""

    node: str
    device: str

    def __str__(self) -> str:
        return f"{self.node}/{self.device}"

    @classmethod
    def parse(cls, text: str) -> "DeviceId":
        """The inverse of `str`; raises ValueError on anything else."""
        node, slash, device = text.partition("/")
        if not (node and slash and device) or "/" in device:
            raise ValueError(f"not a device: {text!r} (expected NODE/DEVICE)")
        return cls(node, device)


@dataclass(frozen=True, slots=True)
class Placement:
    """Expert copies on ranks, for one epoch.

    `ranks[r]` is the device of rank r. `owners[l][e]` lists the ranks that hold a copy of expert e
    of MoE layer l, ascending; every batch is split over them. `instances[r]` counts how often rank
    r was started anew: a healed rank differs from its predecessor.
    """

    model: str
    epoch: int
    ranks: tuple[DeviceId, ...]
    owners: tuple[tuple[tuple[int, ...], ...], ...]
    instances: tuple[int, ...]

    @property
    def width(self) -> int:
        """The expert width: how many ranks the routed experts are spread over."""
        return len(self.ranks)

    @property
    def layer_count(self) -> int:
        """L."""
        return len(self.owners)

    def rank_of(self, device: DeviceId) -> int | None:
        """The rank on a device, or None."""
        return self.ranks.index(device) if device in self.ranks else None

    def experts_on(self, rank: int) -> Iterator[tuple[int, int]]:
        """(layer, expert) of every copy on a rank, in layer then expert order."""
        for layer, experts in enumerate(self.owners):
            for expert, holders in enumerate(experts):
                if rank in holders:
                    yield layer, expert


@dataclass(frozen=True, slots=True)
class Step:
    """One act of a transition. `layer` and `expert` are -1 for Part.SHARED."""

    kind: StepKind
    part: Part
    target: DeviceId
    bytes: int
    layer: int = -1
    expert: int = -1
    source: DeviceId | None = None

    @property
    def crosses_node(self) -> bool:
        """Whether bytes travel between machines."""
        return self.source is not None and self.source.node != self.target.node


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a transition is expected to do, kept beside what it did.

    Bytes are expert bytes unless named.
    """

    bytes_moved: int  # expert bytes that COPY or LOAD onto a device
    bytes_lower_bound: int  # the least any transition between these widths can move
    shared_bytes_moved: int  # non-expert weights onto joining devices
    peak_bytes: dict[str, int]  # device -> bytes held at the worst instant
    prepare_s: float
    pause_ms: float
    steps_cross_node: int


@dataclass(frozen=True, slots=True)
class Infeasible:
    """An expected "no": which limits bind, by how much, and the nearest change that would fit."""

    reasons: tuple[str, ...]
    nearest: str = ""


@dataclass(frozen=True, slots=True)
class TransitionPlan:
    """The pure planner's answer: the placement to reach and the ordered steps to it."""

    kind: TransitionKind
    old: Placement | None
    new: Placement
    steps: tuple[Step, ...]
    prediction: Prediction


def joining_ranks(old: Placement | None, new: Placement) -> tuple[int, ...]:
    """New ranks whose worker is not serving the old epoch: they are started by PREPARE."""
    if old is None:
        return tuple(range(new.width))
    serving = dict(zip(old.ranks, old.instances, strict=True))
    return tuple(
        rank for rank, device in enumerate(new.ranks) if serving.get(device) != new.instances[rank]
    )


def leaving_devices(old: Placement | None, new: Placement) -> tuple[DeviceId, ...]:
    """Devices of the old epoch that have no rank in the new one."""
    if old is None:
        return ()
    return tuple(device for device in old.ranks if device not in new.ranks)


def check_placement(placement: Placement, expert_counts: Sequence[int]) -> None:
    """Raise ValueError unless every expert of every layer has a live copy on an existing rank."""
    if len(placement.instances) != placement.width or len(set(placement.ranks)) != placement.width:
        raise ValueError("ranks must be distinct devices with one instance number each")
    if len(placement.owners) != len(expert_counts):
        raise ValueError(f"{len(placement.owners)} layers placed, {len(expert_counts)} expected")
    for layer, (experts, count) in enumerate(zip(placement.owners, expert_counts, strict=True)):
        if len(experts) != count:
            raise ValueError(f"layer {layer}: {len(experts)} experts placed, {count} expected")
        for expert, holders in enumerate(experts):
            if not holders or list(holders) != sorted(set(holders)):
                raise ValueError(f"layer {layer} expert {expert}: holders {holders} not ascending")
            if holders[0] < 0 or holders[-1] >= placement.width:
                raise ValueError(f"layer {layer} expert {expert}: holder out of range {holders}")
