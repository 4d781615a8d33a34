"""What on this node belongs to nobody, and what should be here and is not? Pure.

Looked at when no transition runs for a model: workers and pages that no placement names are ended
and freed (left over when an agent was killed half way), and ranks that a placement names but that
do not run are reported as lost, so that the controller heals them. A finding counts only when it
has lasted a while, because the watches of transitions and placements are not one stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.plan import DeviceId, Placement

LASTING_S = 3.0  # watches of one store are milliseconds apart


@dataclass(frozen=True, slots=True, order=True)
class Stray:
    """A worker that no placement names."""

    model: str
    device: DeviceId
    instance: int


@dataclass(frozen=True, slots=True, order=True)
class Leftover:
    """Pages of a model on a device where it has neither rank nor worker."""

    model: str
    device: DeviceId


@dataclass(frozen=True, slots=True, order=True)
class Missing:
    """A rank that a placement names and that does not run."""

    model: str
    device: DeviceId
    instance: int
    rank: int
    epoch: int


@dataclass(frozen=True, slots=True, order=True)
class Stale:
    """A worker that holds what it prepared for an operation that is over."""

    model: str
    device: DeviceId
    operation_id: str


Finding = Stray | Leftover | Missing | Stale


@dataclass(frozen=True, slots=True)
class Scene:
    """This node, between transitions."""

    node: str
    placements: Mapping[str, Placement]
    busy: frozenset[str]  # models that a transition changes now
    alive: Mapping[tuple[str, DeviceId], int]  # running workers and their instances
    known: frozenset[tuple[str, DeviceId, int]]  # workers known to be dead, reported already
    held: frozenset[tuple[str, DeviceId]]  # models with pages on a device
    prepared: Mapping[tuple[str, DeviceId], str]  # operations that workers are prepared for


def sweep(scene: Scene) -> tuple[Finding, ...]:
    """Everything that is amiss, in a fixed order."""
    expected = _expected(scene)
    named = {(found.model, found.device): found.instance for found in expected}
    findings: list[Finding] = []
    for (model, device), instance in sorted(scene.alive.items()):
        if model not in scene.busy and named.get((model, device)) != instance:
            findings.append(Stray(model, device, instance))
    for model, device in sorted(scene.held):
        is_used = (model, device) in named or (model, device) in scene.alive
        if model not in scene.busy and not is_used:
            findings.append(Leftover(model, device))
    for (model, device), operation_id in sorted(scene.prepared.items()):
        if model not in scene.busy:
            findings.append(Stale(model, device, operation_id))
    for rank in expected:
        runs = scene.alive.get((rank.model, rank.device)) == rank.instance
        if not runs and (rank.model, rank.device, rank.instance) not in scene.known:
            findings.append(rank)
    return tuple(findings)


def _expected(scene: Scene) -> list[Missing]:
    """Ranks that should run here, of models that no transition changes."""
    return sorted(
        Missing(model, device, placement.instances[rank], rank, placement.epoch)
        for model, placement in scene.placements.items()
        if model not in scene.busy
        for rank, device in enumerate(placement.ranks)
        if device.node == scene.node
    )


class Lasting:
    """Findings that were there at every look for a while."""

    def __init__(self, lasting_s: float = LASTING_S) -> None:
        self._lasting_s = lasting_s
        self._since: dict[Finding, float] = {}

    def filter(self, findings: tuple[Finding, ...], now: float) -> tuple[Finding, ...]:
        """Those of `findings` that have lasted; the others are remembered."""
        self._since = {finding: self._since.get(finding, now) for finding in findings}
        return tuple(f for f in findings if now - self._since[f] >= self._lasting_s)
