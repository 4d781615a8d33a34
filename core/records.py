"""The records that processes exchange through the store: controller and agents meet only here.

Keys (under `/moectl/<cluster>/`, see `Keys`) and values (frozen dataclasses, JSON by `to_json`).
Reading is strict: an unknown or missing field is a ProtocolError, never a silent default, because a
record written by another version is another contract. Standard library only.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from .errors import ProtocolError
from .plan import DeviceId, Phase, Placement, Prediction, Step, TransitionKind
from .transitions import WorkerState

T = TypeVar("T")


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

    def event(self, event_id: str) -> str:
        """EventRecord, on a lease of an hour."""
        return f"{self.events}{event_id}"

    def token(self, digest: str) -> str:
        """TokenRecord under the SHA-256 of the token."""
        return f"{self.tokens}{digest}"

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


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device as its agent probed it."""

    id: str
    kind: str  # "cpu", "cuda", "ascend"
    hbm_bytes: int
    page_bytes: int


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


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Pages of one device by what holds them; free + reserved + sum(used) == total."""

    device: str
    page_bytes: int
    total: int
    free: int
    reserved: int
    used: dict[str, int]  # "experts", "shared", "kv", "adapters" -> pages


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


def to_json(record: Any) -> str:
    """Canonical JSON of a record: keys sorted, no spaces, enums and DeviceIds as strings."""
    return json.dumps(_plain(record), sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_plain(record: Any) -> Any:
    """The record as dicts, lists and scalars, for APIs that encode JSON themselves."""
    return _plain(record)


def _plain(value: Any) -> Any:
    if isinstance(value, DeviceId):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_json(cls: type[T], text: str | bytes) -> T:
    """Read a record; raises ProtocolError naming the field on anything unexpected."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"{cls.__name__}: not JSON: {error}") from error
    return from_plain(cls, data)


def from_plain(cls: type[T], data: Any) -> T:
    """The inverse of `to_plain`; raises ProtocolError naming the field."""
    return typing.cast(T, _build(cls, data, cls.__name__))


def _build(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return data
    if origin in (types.UnionType, typing.Union):
        return _build_optional(kind, data, where)
    if kind is DeviceId:
        return _convert(DeviceId.parse, data, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if origin is tuple:
        return _build_tuple(kind, data, where)
    if origin is dict:
        _expect(isinstance(data, dict), where, "an object", data)
        item = typing.get_args(kind)[1]
        return {key: _build(item, value, f"{where}.{key}") for key, value in data.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _convert(kind, data, where)
    if kind is float:
        _expect(
            isinstance(data, (int, float)) and not isinstance(data, bool), where, "a number", data
        )
        return float(data)
    _expect(type(data) is kind, where, kind.__name__, data)
    return data


def _build_optional(kind: Any, data: Any, where: str) -> Any:
    if data is None:
        return None
    (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
    return _build(inner, data, where)


def _build_tuple(kind: Any, data: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(data, list), where, "a list", data)
    item = typing.get_args(kind)[0]
    if item is int:  # the owner tables of large placements: checked as a whole, 20 times faster
        _expect(all(type(value) is int for value in data), where, "a list of integers", data)
        return tuple(data)
    return tuple(_build(item, value, f"{where}[{index}]") for index, value in enumerate(data))


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(kind)
    required = frozenset(
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}, required


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object", data)
    hints, required = _fields(kind)
    unknown = sorted(set(data) - set(hints))
    missing = sorted(required - set(data))
    if unknown or missing:
        raise ProtocolError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    return kind(**{key: _build(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _convert(convert: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, str), where, "a string", data)
    try:
        return convert(data)
    except ValueError as error:
        raise ProtocolError(f"{where}: {error}") from error


def _expect(holds: bool, where: str, expected: str, data: Any) -> None:
    if not holds:
        raise ProtocolError(f"{where}: expected {expected}, got {type(data).__name__}")
