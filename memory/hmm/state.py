"""What does the HMM own, how does it change, and how does it survive the HMM?

Every change is checked, then written to the journal, then made: after a refusal nothing has
happened, after a kill everything that was answered can be rebuilt. `adopt` takes a device's memory
back from a worker that still has it; `tick` gives up on memory that nobody has (it is listed in
`lost`, its layouts are dropped, and the device starts empty, so that it is loaded again).

Quarantine: pages that were promised to a process when the HMM died may still be written by it. They
stay reserved until that process takes its reservation up again, is gone, or QUARANTINE_S is over.

No sockets here; the time is an argument.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import MappingError, MemoryPoolError
from ...core.paths import ProcessId, is_alive
from ..arbiter import Claim, check_claims
from ..backend import DeviceHandle, PageOwner
from ..host import is_sealed
from ..layout import device_of_layout
from ..pool import PagePool, Reservation
from . import budget
from .holdings import Device, DeviceSpec, KeepsPages, Promise, boot_id, facts_of
from .journal import Effect, Journal, NoJournal, read_journal
from .layouts import Layouts
from .recovery import (
    Past,
    PastReservation,
    claims_effect,
    device_effect,
    replay,
    reserve_effect,
    runs,
)

ADOPT_S = 5.0  # workers notice a dead HMM at once and ask again each 0.1 s, later on full cores
QUARANTINE_S = 600.0  # every transition is over by then: preparing, committing and retiring
COMMITTED_MAX = 4096  # commits that are remembered for those who missed the answer


class NodeState:
    """Devices, layouts and reservations of one node."""

    def __init__(self, owners: Mapping[str, PageOwner], journal: Path | None = None) -> None:
        self.devices: dict[str, Device] = {}
        self.layouts = Layouts()
        self.lost: list[dict[str, Any]] = []
        self.waiting: dict[str, DeviceSpec] = {}  # devices whose memory a worker may still have
        self._owners = owners
        self.committed: dict[int, None] = {}  # the last reservations that were, in order
        self._promises: dict[int, Promise] = {}
        self._quarantined: set[int] = set()
        self._next_number = 1
        self._past = Past()
        self._is_taken_over = False  # then the journal is the predecessor's until it says so
        self._deadline = self._quarantine_end = 0.0
        self._journal_path = journal
        self._journal: Journal | NoJournal = NoJournal()

    # Beginning and end.

    def open(self, specs: Iterable[DeviceSpec], now: float) -> None:
        """Create the devices; those that a journal knows with pages in use wait for their memory.

        Raises MappingError on impossible sizes or a repeated id, MemoryPoolError without a journal.
        """
        if self._journal_path is not None:
            self._past = self._read_past(self._journal_path)
        for spec in specs:
            if spec.device_id in self.devices or spec.device_id in self.waiting:
                raise MappingError(f"device {spec.device_id} is declared twice")
            if self._is_held_still(spec.device_id, spec.kind):
                continue
            if self._is_worth_waiting(spec):
                self.waiting[spec.device_id] = spec
            else:
                self.create(spec)
        self._next_number = self._past.next_number
        self.committed = dict(self._past.committed)
        self._deadline, self._quarantine_end = now + ADOPT_S, now + QUARANTINE_S
        self._settle_past()

    def create(self, spec: DeviceSpec) -> DeviceHandle:
        """A device with all pages free."""
        if spec.kind not in self._owners:
            raise MappingError(f"device {spec.device_id}: kind {spec.kind} has no back end here")
        owner = self._owners[spec.kind]
        handle = owner.create(spec.device_id, spec.hbm_bytes, spec.page_bytes)
        pool, holder = PagePool(handle.page_count, spec.device_id), getattr(owner, "identity", "")
        self.devices[spec.device_id] = Device(handle, pool, holder=holder)
        return handle

    def _is_held_still(self, device_id: str, kind: str) -> bool:
        """Take a driver's device up as the holder still has it and the past knows it."""
        past, owner = self._past.devices.get(device_id), self._owners.get(kind)
        if past is None or not isinstance(owner, KeepsPages):
            return False
        facts, handle = past.facts, owner.known(device_id)
        told = [facts.get("page_bytes"), facts.get("page_count"), facts.get("holder")]
        if handle is None or told != [handle.page_bytes, handle.page_count, owner.identity]:
            self._list_lost(device_id, "its pages were created anew")
            return False
        self.devices[device_id] = Device(
            handle, past.pool, dict(past.claims), holder=owner.identity
        )
        return True

    def close(self, *, forget: bool) -> None:
        """Close every descriptor; memory lives on while a worker maps it."""
        self._journal.close(forget=forget)
        for device in self.devices.values():
            if forget or device.handle.fd >= 0:  # a holder keeps its pages for the next one
                self._owners[device.handle.kind].destroy(device.handle)
        self.devices.clear()

    def owner_of(self, handle: DeviceHandle) -> PageOwner:
        """The back end that holds a device's pages."""
        return self._owners[handle.kind]

    # Recovery.

    @property
    def deadline(self) -> float | None:
        """When `tick` is to be called at the latest."""
        if self.waiting:
            return self._deadline
        return self._quarantine_end if self._quarantined else None

    def adopt(self, device_id: str, fd: int) -> bool:
        """Take a device's memory from a worker: the descriptor is ours when it says True.

        False when it is here already; MappingError when this is not that memory.
        """
        spec = self.waiting.get(device_id)
        if spec is None:
            return False
        past = self._past.devices[device_id]
        status = os.fstat(fd)
        found = (status.st_dev, status.st_ino, status.st_size)
        facts = past.facts
        size = int(facts["page_bytes"]) * int(facts["page_count"])
        if found != (facts.get("dev"), facts.get("ino"), size) or not is_sealed(fd):
            raise MappingError(f"what was offered is not the memory of device {device_id}")
        numbers = int(facts["page_bytes"]), int(facts["page_count"]), str(facts["page_kind"])
        handle = DeviceHandle(device_id, fd, *numbers, spec.kind)
        self.devices[device_id] = Device(handle, past.pool, dict(past.claims))
        del self.waiting[device_id]
        self._settle_past()
        return True

    def begin_journal(self) -> None:
        """Write everything down from now on. Raises MemoryPoolError when that cannot be done."""
        if self._journal_path is not None:
            journal = Journal(self._journal_path, self.snapshot)
            journal.start()
            self._journal = journal

    def restore(self, past: Past, fds: Mapping[str, int], now: float) -> None:
        """Take over all of a running HMM's state, with the descriptors of its devices."""
        self._past, self._next_number, self._is_taken_over = past, past.next_number, True
        self.committed = dict(past.committed)
        for device_id, device in past.devices.items():
            facts = device.facts
            sizes = int(facts["hbm_bytes"]), int(facts["page_bytes"])
            if not self._is_held_still(device_id, str(facts["kind"])):
                self.waiting[device_id] = DeviceSpec(device_id, *sizes, str(facts["kind"]))
        self._deadline, self._quarantine_end = now + ADOPT_S, now + QUARANTINE_S
        for device_id, fd in fds.items():
            self.adopt(device_id, fd)
        self._settle_past()

    def tick(self, now: float) -> list[str]:
        """Give up what has waited too long; returns what happened, as lines for the log."""
        said: list[str] = []
        if self.waiting and now >= self._deadline:
            for device_id, spec in list(self.waiting.items()):
                said.append(self._give_up(device_id, spec))
            self._settle_past()
        for number in sorted(self._quarantined):
            if now >= self._quarantine_end or not is_alive(self._promises[number].process):
                said.append(f"reservation {number} of a lost connection is free again")
                self.forfeit(number)
        return said

    def resume(self, number: int, process: ProcessId) -> bool:
        """Give a quarantined reservation back to its process; False when there is none."""
        promise = self._promises.get(number)
        if number not in self._quarantined or promise is None or promise.process != process:
            return False
        self._quarantined.discard(number)
        return True

    def quarantined_pages(self) -> int:
        """Pages that a process may still write."""
        return sum(len(self._promises[n].reservation.pages) for n in self._quarantined)

    # Changes: check, write down, do.

    def reserve(
        self, device_id: str, pages: int, owner: str, share: tuple[int, ...], process: ProcessId
    ) -> tuple[int, Reservation]:
        """Promise pages; returns the reservation's number, which outlives this process."""
        device = self.device(device_id)
        budget.check_share(device, pages, owner)
        reservation = device.pool.reserve(pages, owner, share)
        number = self._next_number
        entry = PastReservation(device_id, owner, reservation.pages, share, process)
        try:
            self._journal.append([reserve_effect(number, entry)])
        except MemoryPoolError:
            reservation.forfeit()
            raise
        self._next_number += 1
        self._promises[number] = Promise(device_id, reservation, process)
        return number, reservation

    def commit(self, number: int, layouts: Mapping[str, dict[str, Any]]) -> None:
        """The pages become their owner's and the layouts true, in one instant."""
        sizes = self.layouts.check_room(layouts)
        effects: list[Effect] = [["settle", number, True]]
        self._journal.append(effects + [["put", name, plain] for name, plain in layouts.items()])
        self._promises.pop(number).reservation.commit()
        self._remember(number)
        self.layouts.put(layouts, sizes)

    def forfeit(self, number: int) -> int:
        """Forfeit a reservation, whatever happens to the journal; returns its pages."""
        promise = self._promises.pop(number)
        self._quarantined.discard(number)
        promise.reservation.forfeit()
        with contextlib.suppress(MemoryPoolError):  # else a successor keeps them for a minute
            self._journal.append([["settle", number, False]])
        return len(promise.reservation.pages)

    def free(
        self,
        device_id: str,
        pages: tuple[int, ...],
        owner: str,
        drop: Iterable[str],
        put: Mapping[str, dict[str, Any]],
    ) -> int:
        """End an owner's hold of pages and change layouts; returns the pages free by that."""
        pool, dropped = self.device(device_id).pool, list(drop)
        sizes = self.layouts.check_room(put)
        pool.check_held(pages, owner)
        effects: list[Effect] = [["free", device_id, owner, runs(pages)]]
        effects += [["drop", name] for name in dropped]
        self._journal.append(effects + [["put", name, plain] for name, plain in put.items()])
        freed = pool.free(pages, owner)
        for name in dropped:
            self.layouts.drop(name)
        self.layouts.put(put, sizes)
        return freed

    def rename_owner(self, device_id: str, pages: tuple[int, ...], old: str, new: str) -> None:
        """Hand pages from one owner to another."""
        pool = self.device(device_id).pool
        pool.check_renamable(pages, old, new)
        self._journal.append([["rename", device_id, old, new, runs(pages)]])
        pool.rename_owner(pages, old, new)

    def put_layouts(self, layouts: Mapping[str, dict[str, Any]]) -> None:
        """Keep layouts."""
        sizes = self.layouts.check_room(layouts)
        self._journal.append([["put", name, plain] for name, plain in layouts.items()])
        self.layouts.put(layouts, sizes)

    def drop_layout(self, name: str) -> bool:
        """Forget a layout; False when it was unknown."""
        self._journal.append([["drop", name]])
        return self.layouts.drop(name)

    def set_claims(self, device_id: str, claims: dict[str, Claim], model: str = "") -> None:
        """Share a device's pages out by these claims from now on: all of them, or one model's."""
        device = self.device(device_id)
        kept = budget.without(device.claims, {model}) if model else {}
        self._keep_claims(device, kept | claims)

    def keep_claims(self, device_id: str, connection: int) -> None:
        """What a connection asked for stays when it ends."""
        device = self.device(device_id)
        self._keep_claims(device, budget.kept(device, connection))
        del device.asked[connection]

    def drop_asked(self, connection: int) -> None:
        """A connection is gone, and what it asked for with it."""
        for device in self.devices.values():
            device.asked.pop(connection, None)

    def _keep_claims(self, device: Device, claims: dict[str, Claim]) -> None:
        check_claims(claims, device.pool.total)
        self._journal.append([claims_effect(device.handle.device_id, claims)])
        device.claims = claims

    # Looking.

    def device(self, device_id: str) -> Device:
        """A device; MappingError when there is none, MemoryPoolError while memory is awaited."""
        if device_id in self.waiting:
            raise MemoryPoolError(
                f"device {device_id} waits for a worker to hand its memory back",
                next_step=f"ask again; it is settled within {ADOPT_S:g} s",
            )
        if device_id not in self.devices:
            known = ", ".join(sorted(self.devices))
            raise MappingError(f"this node has no device {device_id}; it has: {known}")
        return self.devices[device_id]

    def snapshot(self) -> list[Effect]:
        """The whole state as effects."""
        effects: list[Effect] = []
        for name, device in sorted(self.devices.items()):
            effects.append(device_effect(name, facts_of(device)))
            owned = device.pool.owned_runs()
            effects += [
                ["hold", name, owner, [[r.first, r.count] for r in held]]
                for owner, held in owned.items()
            ]
            if device.claims:
                effects.append(claims_effect(name, device.claims))
        effects += [["committed", number] for number in self.committed]
        for name in self.layouts.names(""):
            effects.append(["put", name, self.layouts.get(name)])
        for number, promise in sorted(self._promises.items()):
            told = promise.reservation
            entry = PastReservation(
                promise.device, told.owner, told.pages, told.shared, promise.process
            )
            effects.append(reserve_effect(number, entry))
        return effects

    # Parts.

    def _remember(self, number: int) -> None:
        self.committed[number] = None
        if len(self.committed) > COMMITTED_MAX:
            del self.committed[next(iter(self.committed))]

    def _read_past(self, path: Path) -> Past:
        try:
            return replay(read_journal(path))
        except MemoryPoolError as error:
            self.lost.append({"device": "", "owner": "", "pages": 0, "reason": error.message})
            return Past()

    def _is_worth_waiting(self, spec: DeviceSpec) -> bool:
        past = self._past.devices.get(spec.device_id)
        if past is None or spec.kind != "cpu" or past.facts.get("boot") != boot_id():
            return False
        facts, is_used = past.facts, past.pool.used_count > 0
        is_promised = any(r.device == spec.device_id for r in self._past.reservations.values())
        same = int(facts["page_bytes"]) == spec.page_bytes
        same = same and int(facts["page_count"]) == spec.hbm_bytes // spec.page_bytes
        if not same and is_used:
            self._list_lost(spec.device_id, "its declaration has changed")
        return same and (is_used or is_promised)

    def _give_up(self, device_id: str, spec: DeviceSpec) -> str:
        pages = self._list_lost(device_id, "no live worker had its memory")
        del self.waiting[device_id]
        self.create(spec)
        return f"device {device_id}: {pages} pages are lost, no live worker had its memory"

    def _list_lost(self, device_id: str, reason: str) -> int:
        held = self._past.devices[device_id].pool.used_by_owner()
        self.lost += [
            {"device": device_id, "owner": owner, "pages": pages, "reason": reason}
            for owner, pages in held.items()
        ]
        return sum(held.values())

    def _settle_past(self) -> None:
        """When no device is awaited any more: keep what is true of the past, and write it down."""
        if self.waiting:
            return
        past, self._past = self._past, Past()
        kept = {name for name, device in self.devices.items() if name in past.devices}
        kept = {name for name in kept if self.devices[name].pool is past.devices[name].pool}
        here = {
            name: plain
            for name, plain in past.layouts.items()
            if device_of_layout(name) in kept or not device_of_layout(name)
        }
        self.layouts.put(here, self.layouts.check_room(here))
        for number, entry in past.reservations.items():
            if entry.device in kept:
                pool = self.devices[entry.device].pool
                again = pool.reserve_exactly(entry.pages, entry.owner, entry.share)
                self._promises[number] = Promise(entry.device, again, entry.process)
                self._quarantined.add(number)
        if not self._is_taken_over:
            self.begin_journal()
