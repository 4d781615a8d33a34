"""The records that processes exchange through the store: controller and agents meet only here.

Keys (under `/moectl/<cluster>/`, see `Keys`) and values (frozen dataclasses; `codec` makes them
JSON and reads them strictly). Standard library only.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .codec import from_json as from_json
from .codec import from_plain as from_plain
from .codec import to_json as to_json
from .codec import to_plain as to_plain
from .fields import FieldNote
from .plan import DeviceId, Pace, Phase, Placement, Prediction, Step, TransitionKind, gives_way
from .transitions import WorkerState


class Keys:
    """Where each record lives; every prefix ends in a slash so that prefixes never overlap."""

    def __init__(self, cluster: str) -> None:
        self.root = f"/moectl/{cluster}/"
        self.specs = f"{self.root}specs/"
        self.nodes = f"{self.root}nodes/"
        self.workers = f"{self.root}workers/"
        self.placements = f"{self.root}placements/"
        self.transitions = f"{self.root}transitions/"
        self.active = f"{self.root}active/"
        self.acks = f"{self.root}acks/"
        self.status = f"{self.root}status/"
        self.stats = f"{self.root}stats/"
        self.events = f"{self.root}events/"
        self.tokens = f"{self.root}tokens/"
        self.admitted = f"{self.root}admitted/"
        self.page_maps = f"{self.root}pagemaps/"
        self.endpoints = f"{self.root}endpoints/"
        self.leader = f"{self.root}leader"

    def spec(self, kind: str, name: str) -> str:
        """SpecRecord; kind is "Cluster" or "Model"."""
        return f"{self.specs}{kind}/{name}"

    def node(self, node: str) -> str:
        """NodeRecord, on the node's lease: present means alive."""
        return f"{self.nodes}{node}"

    def worker(self, model: str, device: DeviceId) -> str:
        """WorkerRecord, on the node's lease."""
        return f"{self.workers}{model}/{device}"

    def placement(self, model: str) -> str:
        """Placement: the committed epoch of a model."""
        return f"{self.placements}{model}"

    def transition(self, operation_id: str) -> str:
        """TransitionRecord, current and past."""
        return f"{self.transitions}{operation_id}"

    def active_of(self, model: str) -> str:
        """The operation id of the model's running transition; absent when none runs."""
        return f"{self.active}{model}"

    def ack(self, operation_id: str, node: str) -> str:
        """AckRecord of one node for one transition."""
        return f"{self.acks}{operation_id}/{node}"

    def status_of(self, model: str) -> str:
        """ModelStatus."""
        return f"{self.status}{model}"

    def stats_of(self, node: str) -> str:
        """NodeStats, on the node's lease, about once a second."""
        return f"{self.stats}{node}"

    def page_map(self, node: str, device: str) -> str:
        """What each page of a device holds, as JSON; on the node's lease, read by people only."""
        return f"{self.page_maps}{node}/{device}"

    def event(self, event_id: str) -> str:
        """EventRecord, on a lease of an hour."""
        return f"{self.events}{event_id}"

    def token(self, digest: str) -> str:
        """TokenRecord under the SHA-256 of the token."""
        return f"{self.tokens}{digest}"

    def admitted_of(self, digest: str) -> str:
        """Present once the admin token of a settings file was let in: revoked, it stays out."""
        return f"{self.admitted}{digest}"

    def endpoint(self, role: str) -> str:
        """EndpointRecord of "controller" or "gateway"."""
        return f"{self.endpoints}{role}"


@dataclass(frozen=True, slots=True)
class SpecRecord:
    """A declared object. `generation` counts changes of `spec`; `operation_id`: last intent."""

    kind: str
    name: str
    generation: int
    spec: dict[str, Any]
    operation_id: str
    changed_at: float  # seconds since the epoch
    changed_by: str
    fields: dict[str, FieldNote] = field(default_factory=dict)  # of every leaf of `spec`
    origin: dict[str, str] = field(default_factory=dict)  # of gitops: "commit" and "path"
    tenant: str = "default"
    pace: Pace = Pace.GENTLE  # of the change that leads here


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device as its agent probed it."""

    id: str
    kind: str  # "cpu", "cuda", "ascend"
    hbm_bytes: int
    page_bytes: int
    pretouch_bytes: int = -1  # free pages that get their memory ahead of need; -1 for all


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A live node. `store_address` is its TCPStore, for process groups led by this node."""

    name: str
    address: str
    devices: tuple[DeviceRecord, ...]
    store_address: str  # "host:port"
    agent_pid: int
    started_at: float
    page_kind: str = "4KiB"  # which pages are in force: "hugetlb", "shmem-thp" or "4KiB"


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as its agent sees it. The gateway connects to `address`."""

    model: str
    rank: int
    device: DeviceId
    instance: int
    epoch: int
    state: WorkerState
    address: str  # "host:port" of the data socket
    pid: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class TransitionRecord:
    """One change of a placement, from intent to end: the journal of DESIGN section 6."""

    operation_id: str
    model: str
    kind: TransitionKind
    phase: Phase
    generation: int  # of the spec it acts on
    old: Placement | None
    new: Placement
    steps: tuple[Step, ...]
    prediction: Prediction
    accepted_at: float  # when the intent was accepted; all times are seconds since the epoch
    phase_at: dict[str, float]  # when each phase was entered
    deadline_at: float  # of the phase in force
    store_address: str  # TCPStore of the new group
    model_spec: dict[str, Any]  # the Model spec that workers start with
    reason: str = ""
    attempt: int = 1
    actual: dict[str, float] = field(default_factory=dict)  # figures reported by the agents
    pace: Pace = Pace.GENTLE

    @property
    def is_gentle(self) -> bool:
        """Whether PREPARE gives way to those who are served."""
        return gives_way(self.kind, self.pace)


@dataclass(frozen=True, slots=True)
class AckRecord:
    """A node's answer to a phase of a transition; a later phase overwrites an earlier one."""

    operation_id: str
    node: str
    phase: Phase  # the phase this node has completed
    ok: bool
    error: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class ConditionStatus(StrEnum):
    """Unknown is shown as unknown."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """One aspect of a model's state, and the generation it was observed at."""

    type: str  # "Admitted", "Placed", "Ready", "Progressing"
    status: ConditionStatus
    reason: str  # CamelCase enum word
    message: str
    observed_generation: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What is true of a model, in the five layers of DESIGN section 8."""

    model: str
    observed_generation: int
    desired_width: int
    admitted_width: int
    allocated_width: int
    joined_width: int
    effective_width: int
    epoch: int
    conditions: tuple[Condition, ...]
    failed_generation: int = 0  # a generation whose transition was forfeited for good


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters of one worker; totals since it started unless named otherwise."""

    model: str
    rank: int
    device: str
    epoch: int
    running: int  # requests in the batch now
    waiting: int
    tokens_out: int
    tokens_in: int
    steps: int
    step_ms_p50: float
    step_ms_p99: float
    kv_blocks_used: int
    kv_blocks_total: int
    expert_tokens: tuple[tuple[int, ...], ...]  # [L][E] tokens computed here in the last second
    rows: int = 0  # token positions computed; a decoded token is one, a prompt is one per token


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Pages of one device by what holds them; free + reserved + sum(used) == total."""

    device: str
    page_bytes: int
    total: int
    free: int
    reserved: int
    used: dict[str, int]  # "experts", "shared", "kv", "adapters" -> pages
    touched: int = -1  # pages with memory behind them; -1 when the HMM does not say
    pretouch: str = ""  # "off", "touching", "done", "short of memory", or what went wrong


@dataclass(frozen=True, slots=True)
class NodeStats:
    """What a node reports about once a second."""

    node: str
    at: float
    workers: tuple[WorkerStats, ...]
    devices: tuple[DeviceUsage, ...]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something a person may want to know. `reason` is a CamelCase enum word."""

    id: str
    at: float
    severity: str  # "info", "warning", "error"
    subject: str  # "model/chat", "node/n1", "worker/chat/n1/d0"
    reason: str
    message: str
    operation_id: str = ""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A bearer token, known by its digest only."""

    name: str
    role: str  # "viewer", "operator", "admin"
    tenant: str
    created_at: float


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """Where a service listens."""

    role: str
    url: str
    pid: int
