"""How do weights travel between nodes while the fleet serves? Over plain streams of their own.

A transition's members are the devices that send or receive across nodes, so that every worker can
work the membership out from the record alone. Every member walks the transition's cross-node steps
in the record's order and ends each before the next, which is why nobody can wait for somebody who
waits for him: of all unfinished steps the first is at the front at both ends.

Bytes go from the sender's mapped pages to the receiver's in one call an expert. Beside gloo, which
copies on threads of its own at normal priority, all work is done by the thread that calls: one that
runs gently sends and receives gently.
"""

import socket
import threading
from collections.abc import Sequence

import torch

from ...core.errors import ExchangeBrokenError
from ...core.plan import DeviceId, Step, StepKind
from . import streams
from .comm.gloo import Rendezvous


def crossing_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The copies that travel between nodes, in the record's order."""
    return tuple(step for step in steps if step.kind is StepKind.COPY and step.crosses_node)


def members(steps: Sequence[Step]) -> tuple[DeviceId, ...]:
    """Who takes part in the transfers, ascending."""
    found: set[DeviceId] = set()
    for step in crossing_steps(steps):
        found |= {step.target, step.source} - {None}  # type: ignore[arg-type]
    return tuple(sorted(found))


def partners(steps: Sequence[Step], device: DeviceId) -> frozenset[DeviceId]:
    """Devices that `device` sends to or receives from."""
    pairs = [(step.source, step.target) for step in crossing_steps(steps)]
    sends = {target for source, target in pairs if source == device}
    return frozenset(sends | {s for s, target in pairs if target == device and s is not None})


class Transfer:
    """One device's part in the transfers of a transition. Used by one thread at a time."""

    def __init__(self, by_device: dict[DeviceId, socket.socket]) -> None:
        self._streams = by_device
        self._lock = threading.Lock()
        self._aborted = ""
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
        """Meet the others. Raises ExchangeBrokenError when one that we need does not come."""
        devices = members(steps)
        meeting = Rendezvous(store_address, name, devices.index(device), len(devices), bind_address)
        ranks = {devices.index(partner) for partner in partners(steps, device)}
        met = streams.open_streams(meeting, ranks, deadline_s)
        return cls({devices[rank]: stream for rank, stream in met.items()})

    def send(self, data: torch.Tensor, target: DeviceId) -> None:
        """Send bytes (uint8, contiguous) in the target's turn; returns when they are on the way."""
        what = f"sending weights to {target}"
        self._do(streams.send_all, target, data, what)
        self.bytes_sent += data.numel()

    def receive(self, data: torch.Tensor, source: DeviceId) -> None:
        """Receive bytes into `data` (uint8, contiguous); they are there on return."""
        what = f"receiving weights from {source}"
        self._do(streams.receive_all, source, data, what)
        self.bytes_received += data.numel()

    def abort(self, reason: str) -> None:
        """End every wait, here and at the others; from any thread."""
        with self._lock:
            self._aborted = self._aborted or reason or "aborted"
            for stream in self._streams.values():
                streams.shut(stream)

    def close(self) -> None:
        """Leave: the streams end when what was sent has been read."""
        with self._lock:
            self._aborted = self._aborted or "closed"
            for stream in self._streams.values():
                stream.close()
            self._streams = {}

    def _do(self, act: streams.Act, device: DeviceId, data: torch.Tensor, what: str) -> None:
        stream = self._streams.get(device)
        if stream is None or self._aborted:
            raise ExchangeBrokenError(f"{what}: {self._aborted or 'there is no stream to it'}")
        try:
            act(stream, data.numpy().data)
        except ExchangeBrokenError as error:
            why = self._aborted or error.message
            self.abort(error.message)  # the peers must not wait for a member that has given up
            raise ExchangeBrokenError(f"{what}: {why}") from error
