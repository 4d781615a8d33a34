"""How do a node's ranks load a model together, so that every byte comes from the disk once?

Experts are each some rank's own. The shared weights are wanted by all of them: the ranks of a node
that load cut them into parts of about equal bytes, each reads its part into its own pages, tells
where these are (a layout under `loading_name`), and copies the other parts from its peers' pages.
Everybody works the parts out from the record and the checkpoint alone.

A peer that fails is no peer: its transition is forfeited, and `should_stop` ends the wait. Pages of
peers are only read while the transition is prepared, and are reserved for all of that time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...core.errors import WorkerError
from ...core.plan import DeviceId, Part, StepKind
from ...core.records import TransitionRecord
from ...memory.bulk import ExpertLoad, Load, Loaded, LoadOptions, load_all
from ...memory.hmm.client import HmmClient
from ...memory.layout import SharedLayout
from ...memory.tensors import shared_tensors
from ...memory.window import Window

POLL_S = 0.005
#: Two readers hide a disk's latency; more would only compete for the cores of the node's ranks.
READERS = 2


def loading_name(model: str, device: str, operation: str) -> str:
    """The HMM's name of what a rank has loaded so far in one operation."""
    return f"loading:{model}:{device}:{operation.replace(':', '-')}"


def loading_peers(record: TransitionRecord, node: str) -> tuple[DeviceId, ...]:
    """The devices of a node that load the shared weights in a transition, ascending."""
    found = {
        step.target
        for step in record.steps
        if step.part is Part.SHARED and step.kind is StepKind.LOAD and step.target.node == node
    }
    return tuple(sorted(found))


def parts_of(layout: SharedLayout, count: int) -> tuple[tuple[str, ...], ...]:
    """The tensors' names in `count` parts: the largest first, each to the part that has least."""
    parts: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    order = sorted(layout.places, key=lambda name: (-layout.places[name].bytes, name))
    for name in order:
        at = sizes.index(min(sizes))
        parts[at].append(name)
        sizes[at] += layout.places[name].bytes
    return tuple(tuple(part) for part in parts)


@dataclass(frozen=True)
class SharedLoad:
    """The shared weights of one rank, to be loaded together with its peers of the node."""

    hmm: HmmClient
    record: TransitionRecord
    device: DeviceId
    layout: SharedLayout  # on this rank's pages
    window: Window  # writable, maps them
    should_stop: Callable[[], bool]

    @property
    def peers(self) -> tuple[DeviceId, ...]:
        """Everyone who takes part, this rank too."""
        return loading_peers(self.record, self.device.node)

    def own(self) -> list[Load]:
        """What this rank reads from the checkpoint."""
        tensors = shared_tensors(self.window, self.layout)
        part = parts_of(self.layout, len(self.peers))[self.peers.index(self.device)]
        return [Load(name, (tensors[name],)) for name in part]

    def tell(self) -> None:
        """Let the peers copy what this rank has read."""
        self.hmm.put_layout(self._name(self.device), self.layout.to_json())

    def copy_rest(self) -> int:
        """Take the other parts from the peers' pages, as they are ready; returns bytes copied."""
        mine, copied = shared_tensors(self.window, self.layout), 0
        for peer, part in zip(self.peers, parts_of(self.layout, len(self.peers)), strict=True):
            if peer == self.device or not part:
                continue
            theirs = self._wait_for(peer)
            handle = self.hmm.device(peer.device)
            size = len(theirs.pages) * handle.page_bytes
            with Window(handle, size, writable=False, mapper=self.window.mapper) as window:
                window.map(0, theirs.pages)
                copied += _copy(shared_tensors(window, theirs), mine, part)
        return copied

    def forget(self) -> None:
        """Drop what was told: everyone has it."""
        self.hmm.drop_layout(self._name(self.device))

    def _wait_for(self, peer: DeviceId) -> SharedLayout:
        name = self._name(peer)
        while (plain := self.hmm.get_layout(name)) is None:
            if self.should_stop() or time.time() > self.record.deadline_at:
                raise WorkerError(f"{peer} did not load its part of the shared weights in time")
            time.sleep(POLL_S)
        return SharedLayout.from_json(plain)

    def _name(self, device: DeviceId) -> str:
        return loading_name(self.record.new.model, device.device, self.record.operation_id)


def _copy(
    source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], names: Sequence[str]
) -> int:
    for name in names:
        target[name].copy_(source[name])
    return sum(target[name].nbytes for name in names)


def load_rank(
    folder: str,
    experts: Sequence[ExpertLoad],
    shared: SharedLoad | None,
    should_stop: Callable[[], bool],
) -> Loaded:
    """Load a rank: its part of the shared weights first, so that peers need not wait, then experts.

    Raises CheckpointError naming file and tensor, WorkerError when a peer does not come.
    """
    options = LoadOptions(READERS, should_stop=should_stop)
    loaded = Loaded()
    if shared is not None:
        loaded = load_all(folder, shared.own(), options)
        shared.tell()
    if experts:
        more = load_all(folder, experts, options)
        loaded.bytes_read += more.bytes_read
    if shared is not None:
        loaded.bytes_copied += shared.copy_rest()
    return loaded
