"""What does each request do to what the HMM owns?

`Table.answer` takes one decoded request of one session and returns a reply and descriptors, or
raises a typed error and has changed nothing. A `Session` is a connection: its open reservations are
forfeited when it ends, and that is all that dies with a client. Committed pages, layouts and
channels stay until told.

Commit and free can change layouts in the same request, so that no instant exists in which a crash
leaves pages that no layout names.

No sockets here, no clock: the loop is in `server.py`, the state in `state.py`, and tests call this
directly.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import MappingError, ProtocolError
from ...core.paths import ProcessId
from ..backend import PageOwner, PageRun
from . import budget
from .channels import Channels
from .holdings import Device, DeviceSpec
from .pretouch import ALL, Pretouch
from .requests import (
    NAME_BYTES_MAX,
    Message,
    claims_of,
    count_of,
    layouts_of,
    names_of,
    numbers_of,
    pages_of,
    runs_of,
    text_of,
)
from .state import NodeState

RESERVATIONS_MAX = 1024  # open at a time, per client
SHARED_FDS_MAX = 4096  # descriptors in one reply about pages that are shared one by one


@dataclass(slots=True)
class Session:
    """One connection: who it is, what it has reserved but not committed, what came with it."""

    name: str = ""
    process: ProcessId = field(default_factory=lambda: ProcessId(0, 0))
    reservations: set[int] = field(default_factory=set)
    maps: bool = False  # has the right to map pages of a device
    takes_over: bool = False  # asked for everything: a successor
    fds: list[int] = field(default_factory=list)  # descriptors received with the running request

    @property
    def key(self) -> int:
        """What it is known by while it lives."""
        return id(self)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply's body and the descriptors that go with it.

    The HMM keeps owning them, unless `is_given` says that they are the receiver's alone.
    """

    body: Message
    fds: tuple[int, ...] = ()
    is_given: bool = False


class Table:
    """One node's HMM as its clients see it."""

    def __init__(
        self, node: str, owners: Mapping[str, PageOwner], journal: Path | None = None
    ) -> None:
        self.node = node
        self.state = NodeState(owners, journal)
        self.channels = Channels()
        self.pretouch = Pretouch(self.state.devices)
        self._operations: dict[str, Callable[[Session, Message], Answer]] = {
            "hello": self._hello,
            "device": self._device,
            "share": self._share,
            "reserve": self._reserve,
            "commit": self._commit,
            "forfeit": self._forfeit,
            "free": self._free,
            "rename_owner": self._rename_owner,
            "pages_of": self._pages_of,
            "trim": self._trim,
            "pretouch": self._pretouch,
            "claims": self._claims,
            "ask": self._ask,
            "keep_claims": self._keep_claims,
            "room": self._room,
            "wanted": self._wanted,
            "put_layout": self._put_layout,
            "get_layout": self._get_layout,
            "drop_layout": self._drop_layout,
            "layouts": self._layout_names,
            "channel": self._channel,
            "drop_channel": self._drop_channel,
            "offer": self._offer,
            "resume": self._resume,
            "hand_over": self._hand_over,
            "recovery": self._recovery,
            "usage": self._usage,
            "owners": self._owners,
            "check": self._check,
        }

    def open(self, specs: Iterable[DeviceSpec], now: float) -> None:
        """Create or recover the devices; raises MappingError on impossible ones."""
        told = list(specs)
        self.state.open(told, now)
        for spec in told:
            self.pretouch.set_limit(spec.device_id, spec.pretouch_bytes)

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
        pages = sum(self.state.forfeit(n) for n in sorted(session.reservations))
        session.reservations.clear()
        self.state.drop_asked(session.key)
        return pages

    def asked_by(self, session: Session) -> dict[str, dict[str, list[float]]]:
        """device -> party -> [guarantee, weight] that a connection asks for: for a successor."""
        return {
            name: {who: [each.guarantee, each.weight] for who, each in asked.items()}
            for name, device in self.state.devices.items()
            if (asked := device.asked.get(session.key))
        }

    def check(self) -> None:
        """Raise InvariantError unless every page of every device is in exactly one state."""
        for device in self.state.devices.values():
            device.pool.check()

    def close(self, *, forget: bool = True) -> None:
        """Close every descriptor; `forget` also removes the journal."""
        self.pretouch.close()
        self.channels.close()
        self.state.close(forget=forget)

    # Operations, in the order of a client's life.

    def _hello(self, session: Session, request: Message) -> Answer:
        session.name = text_of(request, "name")
        awaited = sorted(self.state.waiting)
        devices = sorted([*self.state.devices, *awaited])
        told = {"node": self.node, "devices": devices, "awaited": awaited, "pid": os.getpid()}
        return Answer(told)

    def _device(self, session: Session, request: Message) -> Answer:
        handle = self._of(request).handle
        session.maps = True
        body = {
            "device": handle.device_id,
            "page_bytes": handle.page_bytes,
            "page_count": handle.page_count,
            "page_kind": handle.page_kind,
            "kind": handle.kind,
        }
        return Answer(body, (handle.fd,) if handle.fd >= 0 else ())

    def _share(self, session: Session, request: Message) -> Answer:
        """What it takes to map pages, for kinds of devices that share them one by one."""
        handle = self._of(request).handle
        first, count = count_of(request, "first"), count_of(request, "count")
        process = count_of(request, "process")
        if not 1 <= count <= SHARED_FDS_MAX or first + count > handle.page_count:
            raise MappingError(f"device {handle.device_id} cannot share {count} pages from {first}")
        owner = self.state.owner_of(handle)
        shares = owner.share(handle, PageRun(first, count), process)
        return Answer({"values": list(shares.values)}, shares.fds, is_given=True)

    def _reserve(self, session: Session, request: Message) -> Answer:
        handle = self._of(request).handle
        if len(session.reservations) >= RESERVATIONS_MAX:
            raise MappingError(f"{len(session.reservations)} reservations are open already")
        share = pages_of(request, handle, "share") if "share" in request else ()
        count, owner = count_of(request, "pages"), text_of(request, "owner")
        number, reservation = self.state.reserve(
            handle.device_id, count, owner, share, session.process
        )
        session.reservations.add(number)
        return Answer({"reservation": number, "pages": runs_of(reservation.pages)})

    def _commit(self, session: Session, request: Message) -> Answer:
        layouts = layouts_of(request, "layouts")
        number = self._reservation_number(session, request)
        self.state.commit(number, layouts)
        session.reservations.remove(number)
        return Answer({})

    def _forfeit(self, session: Session, request: Message) -> Answer:
        number = self._reservation_number(session, request)
        session.reservations.remove(number)
        self.state.forfeit(number)
        return Answer({})

    def _free(self, session: Session, request: Message) -> Answer:
        handle = self._of(request).handle
        layouts, dropped = layouts_of(request, "layouts"), names_of(request, "drop_layouts")
        pages, owner = pages_of(request, handle), text_of(request, "owner")
        freed = self.state.free(handle.device_id, pages, owner, dropped, layouts)
        return Answer({"freed": freed})

    def _rename_owner(self, session: Session, request: Message) -> Answer:
        handle = self._of(request).handle
        names = text_of(request, "old"), text_of(request, "new")
        self.state.rename_owner(handle.device_id, pages_of(request, handle), *names)
        return Answer({})

    def _pages_of(self, session: Session, request: Message) -> Answer:
        pool = self._of(request).pool
        return Answer({"pages": runs_of(pool.pages_of(text_of(request, "owner")))})

    def _trim(self, session: Session, request: Message) -> Answer:
        device = self._of(request)
        owner = self.state.owner_of(device.handle)
        free = device.pool.free_runs()
        self.pretouch.trimmed(device.handle.device_id, free)
        return Answer({"bytes": sum(owner.trim(device.handle, run) for run in free)})

    def _pretouch(self, session: Session, request: Message) -> Answer:
        """Keep so many bytes of a device's free pages touched ahead; all of them without a count"""
        limit = count_of(request, "bytes") if "bytes" in request else ALL
        self.pretouch.set_limit(self._of(request).handle.device_id, limit)
        return Answer({})

    def _claims(self, session: Session, request: Message) -> Answer:
        handle = self._of(request).handle
        model = text_of(request, "model") if "model" in request else ""
        self.state.set_claims(handle.device_id, claims_of(request, "claims"), model)
        return Answer({})

    def _ask(self, session: Session, request: Message) -> Answer:
        """Claims that count while this connection lasts, or until they are kept."""
        budget.ask(self._of(request), session.key, claims_of(request, "claims"))
        return Answer({})

    def _keep_claims(self, session: Session, request: Message) -> Answer:
        self.state.keep_claims(self._of(request).handle.device_id, session.key)
        return Answer({})

    def _room(self, session: Session, request: Message) -> Answer:
        return Answer({"pages": budget.room_for(self._of(request), text_of(request, "owner"))})

    def _wanted(self, session: Session, request: Message) -> Answer:
        """Who is to give back how many pages, because a model was refused; told once."""
        device = self._of(request)
        told, device.wanted = device.wanted, {}
        return Answer({"wanted": told})

    def _put_layout(self, session: Session, request: Message) -> Answer:
        self.state.put_layouts(layouts_of(request, "layouts"))
        return Answer({})

    def _get_layout(self, session: Session, request: Message) -> Answer:
        return Answer({"layout": self.state.layouts.get(text_of(request, "name"))})

    def _drop_layout(self, session: Session, request: Message) -> Answer:
        return Answer({"dropped": self.state.drop_layout(text_of(request, "name"))})

    def _layout_names(self, session: Session, request: Message) -> Answer:
        prefix = str(request.get("prefix", ""))
        return Answer({"names": self.state.layouts.names(prefix)})

    def _channel(self, session: Session, request: Message) -> Answer:
        sizes = count_of(request, "ranks"), count_of(request, "bytes_per_rank")
        channel = self.channels.get(text_of(request, "name"), *sizes)
        return Answer({"bytes": channel.bytes, "ranks": channel.ranks}, channel.fds)

    def _drop_channel(self, session: Session, request: Message) -> Answer:
        return Answer({"dropped": self.channels.drop(text_of(request, "name"))})

    # Operations after an HMM's death.

    def _offer(self, session: Session, request: Message) -> Answer:
        """A worker hands back the memory of a device that it still maps."""
        device_id = text_of(request, "device")
        if len(session.fds) != 1:
            raise ProtocolError(f"an offer comes with 1 descriptor, not {len(session.fds)}")
        session.maps = True
        adopted = self.state.adopt(device_id, session.fds[0])
        if adopted:
            session.fds.clear()
        return Answer({"adopted": adopted})

    def _resume(self, session: Session, request: Message) -> Answer:
        """A process takes up the reservations that it had when the HMM died."""
        asked = numbers_of(request, "reservations")
        taken = [number for number in asked if self.state.resume(number, session.process)]
        session.reservations.update(taken)
        committed = [number for number in asked if number in self.state.committed]
        waiting = bool(self.state.waiting)
        return Answer({"resumed": taken, "committed": committed, "waiting": waiting})

    def _hand_over(self, session: Session, request: Message) -> Answer:
        """A successor asks for everything; the loop does it, because it takes all connections."""
        if self.state.waiting:
            raise MappingError("memory is still awaited here: ask again in a few seconds")
        session.takes_over = True
        return Answer({})

    def _recovery(self, session: Session, request: Message) -> Answer:
        state = self.state
        body = {"waiting": sorted(state.waiting), "lost": state.lost}
        return Answer({**body, "quarantined": state.quarantined_pages()})

    # Looking.

    def _usage(self, session: Session, request: Message) -> Answer:
        usage = [
            {
                "device": name,
                "page_bytes": device.handle.page_bytes,
                "page_kind": device.handle.page_kind,
                "total": device.pool.total,
                "free": device.pool.free_count,
                "reserved": device.pool.reserved_count,
                "shared": device.pool.shared_count,
                "used": device.pool.used_by_owner(),
                "claims": budget.told(device),
                **self.pretouch.told(name),
            }
            for name, device in sorted(self.state.devices.items())
        ]
        return Answer({"usage": usage, "channels": self.channels.names()})

    def _owners(self, session: Session, request: Message) -> Answer:
        """Who holds which pages of a device, as runs; shared pages with every holder."""
        pool = self._of(request).pool
        owned = pool.owned_runs()
        body = {owner: [[r.first, r.count] for r in held] for owner, held in owned.items()}
        free = [[run.first, run.count] for run in pool.free_runs()]
        return Answer({"owners": body, "free": free, "reserved": pool.reserved_count})

    def _check(self, session: Session, request: Message) -> Answer:
        self.check()
        return Answer({})

    # Parts.

    def _of(self, request: Message) -> Device:
        return self.state.device(text_of(request, "device"))

    def _reservation_number(self, session: Session, request: Message) -> int:
        number = count_of(request, "reservation")
        if number not in session.reservations:
            raise MappingError(f"reservation {number} is not open on this connection")
        return number
