"""Which ranks take the requests of one that leaves, and how are they reached? Also the tally."""

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...core.errors import MoectlError
from ...core.plan import DeviceId
from ...core.records import TransitionRecord
from .land import Ground
from .move_wire import Meeting, MoveSocket, read_secret
from .moves import Room

#: Between two looks at what has filled up.
LOOK_S = 0.05
#: The longest that a wait for a receiver's door goes on when nobody wants it any more.
DOOR_S = 0.2


@dataclass
class Link:
    """One receiver: its connection, and where gateways find it."""

    device: str
    sock: MoveSocket
    data_address: str
    is_near: bool


@dataclass
class Tally:
    """What became of the requests; figures of the transition."""

    moved: int = 0
    replayed: int = 0
    bytes: int = 0
    tail_blocks: int = 0
    tail_ms: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """As the agent is told."""
        return {
            "requests_moved": float(self.moved),
            "requests_replayed": float(self.replayed),
            "kv_moved_bytes": float(self.bytes),
            "move_tail_ms": self.tail_ms,
        }


def reach(
    ground: Ground, record: TransitionRecord, stop: threading.Event
) -> Iterator[tuple[Link, Room]]:
    """Connect to every rank of the new epoch; one that cannot be reached takes nothing.

    A rank opens its door at the end of its own PREPARE, which may take long: waits for it until
    the record's deadline or `stop`. Raises MoectlError without the meeting place.
    """
    until = record.deadline_at - time.time() + time.monotonic()
    meeting = Meeting(record.store_address, record.operation_id)
    for receiver in record.new.ranks:
        address = _find(meeting, receiver, until, stop)
        if address is None:
            continue
        try:
            yield _link(ground, receiver, address)
        except MoectlError as error:
            print(f"{receiver} takes no requests: {error.message}", file=sys.stderr, flush=True)


def _find(meeting: Meeting, receiver: DeviceId, until: float, stop: threading.Event) -> str | None:
    while (address := meeting.find(receiver, DOOR_S)) is None:
        if stop.is_set() or time.monotonic() > until:
            return None
    return address


def _link(ground: Ground, receiver: DeviceId, address: str) -> tuple[Link, Room]:
    launch, device = ground.context.launch, ground.context.device
    is_near = receiver.node == device.node
    sock = MoveSocket.connect(address, launch.node_address)
    hello = {"secret": read_secret(launch.secret_file), "node": launch.node, "device": str(device)}
    room = sock.ask(hello)
    blocks, lanes, queue = (int(room[key]) for key in ("blocks", "lanes", "queue"))
    link = Link(str(receiver), sock, str(room["data_address"]), is_near)
    return link, Room(str(receiver), blocks, lanes, queue, is_near)
