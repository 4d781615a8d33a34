"""What does the HMM own, and what does each request do to it?

`Table` holds the devices with their pools, the named layouts and the channels. `Table.answer` takes
one decoded request of one session and returns a reply and descriptors, or raises a typed error and
has changed nothing. A `Session` is a connection: its open reservations are forfeited when it ends,
and that is all that dies with a client. Committed pages, layouts and channels stay until told.

Commit and free can change layouts in the same request, so that no instant exists in which a crash
leaves pages that no layout names.

No sockets here, no clock: the loop is in `server.py`, and tests call this directly.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import MappingError, ProtocolError
from ..backend import DeviceHandle, PageOwner, PageRun, coalesce, expand
from ..pool import PagePool, Reservation
from . import wire
from .channels import Channels
from .layouts import Layouts

NAME_BYTES_MAX = 200  # of an owner, a layout or a channel
RESERVATIONS_MAX = 1024  # open at a time, per client
HOLDERS_TOLD_MAX = 64  # a refusal names at most so many holders

Message = dict[str, Any]


@dataclass(slots=True)
class Session:
    """One connection: its name, and what it has reserved but not committed."""

    name: str = ""
    next_id: int = 1
    reservations: dict[int, tuple[str, Reservation]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply's body and the descriptors that go with it; the HMM keeps owning them."""

    body: Message
    fds: tuple[int, ...] = ()


class Table:
    """Everything that one node's HMM owns."""

    def __init__(self, node: str, owner: PageOwner) -> None:
        self.node = node
        self._owner = owner
        self._handles: dict[str, DeviceHandle] = {}
        self._pools: dict[str, PagePool] = {}
        self._layouts = Layouts()
        self._channels = Channels()
        self._operations: dict[str, Callable[[Session, Message], Answer]] = {
            "hello": self._hello,
            "device": self._device,
            "reserve": self._reserve,
            "commit": self._commit,
            "forfeit": self._forfeit,
            "free": self._free,
            "rename_owner": self._rename_owner,
            "pages_of": self._pages_of,
            "trim": self._trim,
            "put_layout": self._put_layout,
            "get_layout": self._get_layout,
            "drop_layout": self._drop_layout,
            "layouts": self._layout_names,
            "channel": self._channel,
            "drop_channel": self._drop_channel,
            "usage": self._usage,
            "check": self._check,
        }

    def add_device(self, device_id: str, hbm_bytes: int, page_bytes: int) -> DeviceHandle:
        """Create a device's pages. Raises MappingError on impossible sizes or a repeated id."""
        if device_id in self._handles:
            raise MappingError(f"device {device_id} is declared twice")
        handle = self._owner.create(device_id, hbm_bytes, page_bytes)
        self._handles[device_id] = handle
        self._pools[device_id] = PagePool(handle.page_count, device_id)
        return handle

    def answer(self, session: Session, request: Message) -> Answer:
        """Do what a request says. Raises MoectlError; ProtocolError when it makes no sense."""
        operation = self._operations.get(str(request.get("op"))[:NAME_BYTES_MAX])
        if operation is None:
            raise ProtocolError(f"unknown operation {str(request.get('op'))[:40]!r}")
        if not session.name and operation != self._hello:
            raise ProtocolError("the first message of a connection must be hello")
        return operation(session, request)

    def end(self, session: Session) -> int:
        """A connection is gone: forfeit its reservations; returns the pages that came back."""
        pages = 0
        for _, reservation in session.reservations.values():
            pages += len(reservation.pages)
            reservation.forfeit()
        session.reservations.clear()
        return pages

    def check(self) -> None:
        """Raise InvariantError unless every page of every device is in exactly one state."""
        for pool in self._pools.values():
            pool.check()

    def close(self) -> None:
        """Close every descriptor; memory lives on while a worker maps it."""
        self._channels.close()
        for handle in self._handles.values():
            self._owner.destroy(handle)
        self._handles.clear()

    # Operations, in the order of a client's life.

    def _hello(self, session: Session, request: Message) -> Answer:
        session.name = _text(request, "name")
        return Answer({"node": self.node, "devices": sorted(self._handles)})

    def _device(self, session: Session, request: Message) -> Answer:
        handle, _ = self._of(request)
        body = {
            "device": handle.device_id,
            "page_bytes": handle.page_bytes,
            "page_count": handle.page_count,
            "page_kind": handle.page_kind,
        }
        return Answer(body, (handle.fd,))

    def _reserve(self, session: Session, request: Message) -> Answer:
        _, pool = self._of(request)
        if len(session.reservations) >= RESERVATIONS_MAX:
            raise MappingError(f"{len(session.reservations)} reservations are open already")
        reservation = pool.reserve(_count(request, "pages"), _text(request, "owner"))
        number, session.next_id = session.next_id, session.next_id + 1
        session.reservations[number] = (pool.device, reservation)
        return Answer({"reservation": number, "pages": _runs(reservation.pages)})

    def _commit(self, session: Session, request: Message) -> Answer:
        layouts = _layouts(request, "layouts")
        sizes = self._layouts.check_room(layouts)
        number = self._reservation_number(session, request)
        session.reservations.pop(number)[1].commit()
        self._layouts.put(layouts, sizes)
        return Answer({})

    def _forfeit(self, session: Session, request: Message) -> Answer:
        number = self._reservation_number(session, request)
        session.reservations.pop(number)[1].forfeit()
        return Answer({})

    def _free(self, session: Session, request: Message) -> Answer:
        handle, pool = self._of(request)
        layouts, dropped = _layouts(request, "layouts"), _names(request, "drop_layouts")
        sizes = self._layouts.check_room(layouts)
        pool.free(_pages(request, handle), _text(request, "owner"))
        for name in dropped:
            self._layouts.drop(name)
        self._layouts.put(layouts, sizes)
        return Answer({})

    def _rename_owner(self, session: Session, request: Message) -> Answer:
        handle, pool = self._of(request)
        pages = _pages(request, handle)
        pool.rename_owner(pages, _text(request, "old"), _text(request, "new"))
        return Answer({})

    def _pages_of(self, session: Session, request: Message) -> Answer:
        _, pool = self._of(request)
        return Answer({"pages": _runs(pool.pages_of(_text(request, "owner")))})

    def _trim(self, session: Session, request: Message) -> Answer:
        handle, pool = self._of(request)
        return Answer({"bytes": sum(self._owner.trim(handle, run) for run in pool.free_runs())})

    def _put_layout(self, session: Session, request: Message) -> Answer:
        layouts = _layouts(request, "layouts")
        self._layouts.put(layouts, self._layouts.check_room(layouts))
        return Answer({})

    def _get_layout(self, session: Session, request: Message) -> Answer:
        return Answer({"layout": self._layouts.get(_text(request, "name"))})

    def _drop_layout(self, session: Session, request: Message) -> Answer:
        return Answer({"dropped": self._layouts.drop(_text(request, "name"))})

    def _layout_names(self, session: Session, request: Message) -> Answer:
        prefix = str(request.get("prefix", ""))
        return Answer({"names": self._layouts.names(prefix)})

    def _channel(self, session: Session, request: Message) -> Answer:
        sizes = _count(request, "ranks"), _count(request, "bytes_per_rank")
        channel = self._channels.get(_text(request, "name"), *sizes)
        return Answer({"bytes": channel.bytes, "ranks": channel.ranks}, channel.fds)

    def _drop_channel(self, session: Session, request: Message) -> Answer:
        return Answer({"dropped": self._channels.drop(_text(request, "name"))})

    def _usage(self, session: Session, request: Message) -> Answer:
        usage = [
            {
                "device": device,
                "page_bytes": self._handles[device].page_bytes,
                "page_kind": self._handles[device].page_kind,
                "total": pool.total,
                "free": pool.free_count,
                "reserved": pool.reserved_count,
                "used": pool.used_by_owner(),
            }
            for device, pool in sorted(self._pools.items())
        ]
        return Answer({"usage": usage, "channels": self._channels.names()})

    def _check(self, session: Session, request: Message) -> Answer:
        self.check()
        return Answer({})

    # Parts.

    def _of(self, request: Message) -> tuple[DeviceHandle, PagePool]:
        device = _text(request, "device")
        if device not in self._handles:
            known = ", ".join(sorted(self._handles))
            raise MappingError(f"node {self.node} has no device {device}; it has: {known}")
        return self._handles[device], self._pools[device]

    def _reservation_number(self, session: Session, request: Message) -> int:
        number = _count(request, "reservation")
        if number not in session.reservations:
            raise MappingError(f"reservation {number} is not open on this connection")
        return number


def _text(request: Message, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not _is_name(value):
        raise ProtocolError(f"{key!r} must be 1 to {NAME_BYTES_MAX} printable ASCII characters")
    return value


def _is_name(value: str) -> bool:
    return 1 <= len(value) <= NAME_BYTES_MAX and value.isascii() and value.isprintable()


def _count(request: Message, key: str) -> int:
    value = request.get(key)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ProtocolError(f"{key!r} must be a count")
    return value


def _pages(request: Message, handle: DeviceHandle) -> tuple[int, ...]:
    """Pages sent as runs; their sum is checked before anything of that size is built."""
    runs: list[PageRun] = []
    value = request.get("pages")
    for entry in value if isinstance(value, list) else [None]:
        numbers = entry if isinstance(entry, list) else []
        if len(numbers) != 2 or any(type(number) is not int for number in numbers):
            raise ProtocolError("'pages' must be a list of [first, count]")
        runs.append(PageRun(*numbers))
    total = sum(run.count for run in runs)
    if any(run.first < 0 or run.count < 1 for run in runs) or total > handle.page_count:
        raise MappingError(
            f"device {handle.device_id} has no such pages: {total} in {len(runs)} runs"
        )
    return expand(runs)


def _layouts(request: Message, key: str) -> dict[str, Message]:
    value = request.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(plain, dict) for plain in value.values()):
        raise ProtocolError(f"{key!r} must map names to layouts")
    if not all(_is_name(name) for name in value):
        raise ProtocolError(f"a layout's name is 1 to {NAME_BYTES_MAX} printable ASCII characters")
    return value


def _names(request: Message, key: str) -> list[str]:
    value = request.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ProtocolError(f"{key!r} must be a list of names")
    return value


def _runs(pages: tuple[int, ...]) -> list[list[int]]:
    return [[run.first, run.count] for run in coalesce(pages)]


def error_body(error: Exception) -> Message:
    """An error as a reply: class, text, and the fields to rebuild it from."""
    body: Message = {
        "type": type(error).__name__,
        "message": str(getattr(error, "message", error))[: wire.GREETING_BYTES_MAX],
        "next_step": getattr(error, "next_step", ""),
    }
    holders = getattr(error, "holders", None)
    if holders is not None:
        largest = sorted(holders.items(), key=lambda item: (-item[1], item[0]))[:HOLDERS_TOLD_MAX]
        body |= {
            "device": getattr(error, "device", ""),
            "needed": getattr(error, "needed_pages", 0),
            "free": getattr(error, "free_pages", 0),
            "holders": dict(largest),
        }
    return body
