"""How do weights travel between nodes while the fleet serves? Through a gloo group of their own.

The group's members are the devices that send or receive across nodes in one transition, so that
every worker can work the membership out from the record alone. Every member walks the transition's
cross-node steps in the record's order, which is why nobody can wait for somebody who waits for him:
of all unfinished messages the first is posted at both ends.

Messages are pieces of at most PIECE_BYTES, a few in flight, sent from and received into pages.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from ...core.plan import DeviceId, Step, StepKind
from .comm.gloo import GlooGroup, Rendezvous

#: gloo reaches its speed from about 16 MiB on (measured 1.1-1.5 GB/s against 0.6 at 2 MiB).
PIECE_BYTES = 16 * 1024 * 1024
IN_FLIGHT_MAX = 8
_TAG = 3


def crossing_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The copies that travel between nodes, in the record's order."""
    return tuple(step for step in steps if step.kind is StepKind.COPY and step.crosses_node)


def members(steps: Sequence[Step]) -> tuple[DeviceId, ...]:
    """Who takes part in the transfers, ascending."""
    found: set[DeviceId] = set()
    for step in crossing_steps(steps):
        found |= {step.target, step.source} - {None}  # type: ignore[arg-type]
    return tuple(sorted(found))


class Transfer:
    """One device's part in the transfers of a transition. Used by one thread at a time."""

    def __init__(self, group: GlooGroup, devices: Sequence[DeviceId]) -> None:
        self._group = group
        self._rank_of = {device: rank for rank, device in enumerate(devices)}
        self._in_flight: deque[tuple[Any, torch.Tensor, str]] = deque()
        self.bytes_sent = 0
        self.bytes_received = 0

    @classmethod
    def join(
        cls,
        store_address: str,
        name: str,
        device: DeviceId,
        steps: Sequence[Step],
        bind_address: str,
        deadline_s: float,
    ) -> "Transfer":
        """Meet the other members. Raises ExchangeBrokenError when one does not come."""
        devices = members(steps)
        meeting = Rendezvous(store_address, name, devices.index(device), len(devices), bind_address)
        return cls(GlooGroup(meeting, deadline_s), devices)

    def send(self, data: torch.Tensor, target: DeviceId) -> None:
        """Start sending bytes (uint8, contiguous); they must stay until `flush`."""
        for piece in data.split(PIECE_BYTES):
            work = self._group.send(piece, self._rank_of[target], _TAG)
            self._push(work, piece, f"sending weights to {target}")
        self.bytes_sent += data.numel()

    def receive(self, data: torch.Tensor, source: DeviceId) -> None:
        """Start receiving bytes into `data`; they are there after `flush`."""
        for piece in data.split(PIECE_BYTES):
            work = self._group.receive(piece, self._rank_of[source], _TAG)
            self._push(work, piece, f"receiving weights from {source}")
        self.bytes_received += data.numel()

    def flush(self) -> None:
        """Wait for everything in flight."""
        while self._in_flight:
            self._wait_oldest()

    def abort(self, reason: str) -> None:
        """End every wait, here and at the others; from any thread."""
        self._group.abort(reason)

    def close(self) -> None:
        """Leave the group."""
        self._in_flight.clear()
        self._group.close()

    def _push(self, work: Any, piece: torch.Tensor, what: str) -> None:
        self._in_flight.append((work, piece, what))
        if len(self._in_flight) > IN_FLIGHT_MAX:
            self._wait_oldest()

    def _wait_oldest(self) -> None:
        work, _, what = self._in_flight.popleft()
        self._group.wait(work, what)
