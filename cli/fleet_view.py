"""What does the fleet look like right now? One frozen snapshot, as the API's `fleet` answer tells
it.

Everything that shows a fleet (tables, `--wait`, the TUI, the demo) reads this and nothing else, so
that all of them agree and can be tested from a fixture. Pure: no IO, no clock. Parts that the
controller does not know yet (a model without a placement, a node without usage) are None, and shown
as unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ProtocolError
from ..core.plan import Pace, Placement
from ..core.records import (
    DeviceUsage,
    EventRecord,
    ModelStatus,
    WorkerRecord,
    WorkerStats,
    from_plain,
)
from ..core.transitions import WorkerState

TERMINAL = frozenset({"done", "forfeited"})


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device with what holds its pages; `usage` is None until its node has reported."""

    node: str
    id: str
    kind: str
    hbm_bytes: int
    page_bytes: int
    usage: DeviceUsage | None = None

    @property
    def name(self) -> str:
        """NODE/DEVICE."""
        return f"{self.node}/{self.id}"


@dataclass(frozen=True, slots=True)
class NodeView:
    """A live node and its devices."""

    name: str
    address: str
    page_kind: str
    agent_pid: int
    started_at: float
    devices: tuple[DeviceView, ...]


@dataclass(frozen=True, slots=True)
class TransitionView:
    """A change of a placement without its steps: what was predicted and what happened."""

    operation_id: str
    model: str
    kind: str
    phase: str
    from_width: int
    to_width: int
    accepted_at: float
    phase_at: Mapping[str, float]
    deadline_at: float
    prediction: Mapping[str, Any]
    actual: Mapping[str, float]
    reason: str = ""
    attempt: int = 1
    pace: str = Pace.GENTLE

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in either way."""
        return self.phase in TERMINAL


@dataclass(frozen=True, slots=True)
class ModelView:
    """A declared model and what is true of it."""

    name: str
    generation: int
    spec: Mapping[str, Any]
    status: ModelStatus | None
    placement: Placement | None
    workers: tuple[WorkerRecord, ...]
    stats: tuple[WorkerStats, ...]
    active: TransitionView | None

    @property
    def is_ready(self) -> bool:
        """Whether the Ready condition holds for the newest generation of the spec.

        One that was refused, or failed for good, is observed and yet never the one that is served.
        """
        if self.status is None or self.status.observed_generation < self.generation:
            return False
        return any(
            c.type == "Ready" and c.status == "True" and c.observed_generation >= self.generation
            for c in self.status.conditions
        )

    @property
    def is_whole(self) -> bool:
        """Ready, and every rank of the placement has a live worker that serves its epoch.

        Stricter than `is_ready`, whose condition may be from before an outage.
        """
        if not self.is_ready or self.placement is None:
            return False
        serving = {
            worker.device
            for worker in self.workers
            if worker.state is WorkerState.SERVING and worker.epoch == self.placement.epoch
        }
        return serving.issuperset(self.placement.ranks)


@dataclass(frozen=True, slots=True)
class FleetView:
    """The whole fleet at one moment; `at` is seconds since the epoch on the controller's clock."""

    cluster: str
    revision: int
    at: float
    nodes: tuple[NodeView, ...] = ()
    models: tuple[ModelView, ...] = ()
    transitions: tuple[TransitionView, ...] = ()
    events: tuple[EventRecord, ...] = ()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    missing_nodes: tuple[str, ...] = ()  # declared and not alive
    store_age_s: float = 0.0  # since the store last told the controller something

    def model(self, name: str) -> ModelView | None:
        """A model by its name."""
        return next((model for model in self.models if model.name == name), None)

    def transition(self, operation_id: str) -> TransitionView | None:
        """A transition by its operation id, running or past."""
        return next((t for t in self.transitions if t.operation_id == operation_id), None)


def fleet_from_plain(data: Any) -> FleetView:
    """Read the API's `fleet` answer; raises ProtocolError naming what is missing."""
    try:
        return FleetView(
            cluster=str(data["cluster"]),
            revision=int(data["revision"]),
            at=float(data["at"]),
            nodes=tuple(_node(item) for item in data["nodes"]),
            models=tuple(_model(item) for item in data["models"]),
            transitions=tuple(transition_from_plain(item) for item in data["transitions"]),
            events=tuple(from_plain(EventRecord, item) for item in data["events"]),
            endpoints=_endpoints(data.get("endpoints") or {}),
            missing_nodes=tuple(data.get("missing_nodes") or ()),
            store_age_s=float(data.get("store_age_s") or 0.0),
        )
    except (KeyError, TypeError) as error:
        raise ProtocolError(f"the fleet answer is not in the expected form: {error!r}") from error


def transition_from_plain(data: Mapping[str, Any]) -> TransitionView:
    """A TransitionRecord (with or without its steps) as a view."""
    return TransitionView(
        operation_id=data["operation_id"],
        model=data["model"],
        kind=data["kind"],
        phase=data["phase"],
        from_width=_width(data, "old"),
        to_width=_width(data, "new"),
        accepted_at=data["accepted_at"],
        phase_at=dict(data["phase_at"]),
        deadline_at=data["deadline_at"],
        prediction=dict(data["prediction"]),
        actual=dict(data.get("actual") or {}),
        reason=data.get("reason", ""),
        attempt=data.get("attempt", 1),
        pace=data.get("pace", Pace.GENTLE),
    )


def _width(data: Mapping[str, Any], side: str) -> int:
    named = data.get("from_width" if side == "old" else "to_width")
    if named is not None:
        return int(named)
    placement = data.get(side)
    return len(placement["ranks"]) if placement else 0


def _node(data: Mapping[str, Any]) -> NodeView:
    usage = {item["device"]: item for item in data.get("usage") or ()}
    return NodeView(
        name=data["name"],
        address=data["address"],
        page_kind=data.get("page_kind", "unknown"),
        agent_pid=data.get("agent_pid", 0),
        started_at=data.get("started_at", 0.0),
        devices=tuple(_device(data["name"], item, usage) for item in data["devices"]),
    )


def _device(node: str, data: Mapping[str, Any], usage: Mapping[str, Any]) -> DeviceView:
    pages = data.get("usage") or usage.get(data["id"]) or usage.get(f"{node}/{data['id']}")
    return DeviceView(
        node=node,
        id=data["id"],
        kind=data["kind"],
        hbm_bytes=data["hbm_bytes"],
        page_bytes=data["page_bytes"],
        usage=from_plain(DeviceUsage, pages) if pages else None,
    )


def _model(data: Mapping[str, Any]) -> ModelView:
    active = data.get("transition") or data.get("active")
    return ModelView(
        name=data["name"],
        generation=data.get("generation", 0),
        spec=data.get("spec") or {},
        status=_optional(ModelStatus, data.get("status")),
        placement=_optional(Placement, data.get("placement")),
        workers=_records(WorkerRecord, data.get("workers") or ()),
        stats=_records(WorkerStats, data.get("stats") or ()),
        active=transition_from_plain(active) if active else None,
    )


def _optional(cls: Any, data: Any) -> Any:
    return None if data is None else from_plain(cls, data)


def _records(cls: Any, items: Sequence[Any]) -> Any:
    return tuple(from_plain(cls, item) for item in items)


def _endpoints(data: Any) -> dict[str, str]:
    if isinstance(data, Mapping):
        return {
            role: item["url"] if isinstance(item, Mapping) else item for role, item in data.items()
        }
    return {item["role"]: item["url"] for item in data}
