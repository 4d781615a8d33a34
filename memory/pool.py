"""Which pages of a device are free, promised or in use, and by whom?

Pages go `free -> reserved -> used -> free`. A reservation is a promise that is either committed
(the pages become the owner's) or forfeited (they are free again); as a context manager it forfeits
unless committed, so a failed transfer cannot leak. An owner is a label such as "chat/experts".

A page may have several holders: experts whose size is no multiple of the page share the page on
which one ends and the next begins. A reservation can name pages in use that it wants to share; such
a page is free again when its last holder has let go. Counts name the first holder only, so that
free + used + reserved stays the total.

The pool prefers consecutive pages, because a run is one mapping and one system call: the smallest
free run that fits, lowest page first (low pages were used before, so their memory is already
touched); without one, the largest runs first.

Pure: no IO, no clock. It must never touch memory, nor know who is on the other end of a socket.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from types import TracebackType

from ..core.errors import InvariantError, MappingError, PoolExhaustedError
from .backend import PageRun, coalesce, expand
from .free_runs import FreeRuns


class ReservationState(StrEnum):
    """Committed and forfeited are final."""

    OPEN = "open"
    COMMITTED = "committed"
    FORFEITED = "forfeited"


class Reservation:
    """Pages promised to an owner, known from the start so that they can be filled before commit.

    `shared` are pages of others that this reservation holds too: they cannot become free meanwhile.
    """

    def __init__(
        self, pool: "PagePool", owner: str, pages: tuple[int, ...], shared: tuple[int, ...] = ()
    ) -> None:
        self.owner = owner
        self.pages = pages
        self.shared = shared
        self.state = ReservationState.OPEN
        self._pool = pool

    def commit(self) -> tuple[int, ...]:
        """The pages now belong to the owner. Raises MappingError after a forfeit."""
        if self.state is ReservationState.FORFEITED:
            raise MappingError(f"reservation of {self.owner} was forfeited and cannot be committed")
        if self.state is ReservationState.OPEN:
            self.state = ReservationState.COMMITTED
            self._pool._settle(self, committed=True)
        return self.pages

    def forfeit(self) -> None:
        """The pages are free again; does nothing when already forfeited, refuses after a commit."""
        if self.state is ReservationState.COMMITTED:
            raise MappingError(f"reservation of {self.owner} is committed: free its pages instead")
        if self.state is ReservationState.OPEN:
            self.state = ReservationState.FORFEITED
            self._pool._settle(self, committed=False)

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.state is ReservationState.OPEN:
            self.forfeit()


class PagePool:
    """The pages `0 .. total_pages - 1` of one device."""

    def __init__(self, total_pages: int, device: str = "") -> None:
        if total_pages <= 0:
            raise MappingError(f"device {device}: a pool of {total_pages} pages")
        self.total = total_pages
        self.device = device
        self._free = FreeRuns(total_pages)
        self._owner_of: dict[int, str] = {}
        self._sharers: dict[int, tuple[str, ...]] = {}  # page in use -> its further holders
        self._reservations: set[Reservation] = set()
        self._reserved_count = 0

    @property
    def free_count(self) -> int:
        """Pages that a reservation can have now."""
        return self._free.count

    @property
    def reserved_count(self) -> int:
        """Pages in open reservations."""
        return self._reserved_count

    @property
    def used_count(self) -> int:
        """Pages that have an owner."""
        return len(self._owner_of)

    @property
    def shared_count(self) -> int:
        """Pages in use that have more than one holder."""
        return len(self._sharers)

    def reserve(self, pages: int, owner: str, share: Sequence[int] = ()) -> Reservation:
        """Promise `pages` pages to `owner`, consecutive ones where possible, and hold `share`.

        Raises PoolExhaustedError with needed, free and holders; MappingError for a count below 1
        (0 is fine beside shared pages) and for pages that cannot be shared with this owner.
        """
        if pages < 0 or not (pages or share):
            raise MappingError(f"device {self.device}: a reservation of {pages} pages by {owner}")
        if pages > self._free.count:
            raise PoolExhaustedError(self.device, pages, self._free.count, self.holders())
        self._share(share, owner)
        return self._promise(owner, expand(self._free.take(pages)) if pages else (), tuple(share))

    def reserve_exactly(
        self, pages: Sequence[int], owner: str, share: Sequence[int] = ()
    ) -> Reservation:
        """Promise these very pages: what a recovery keeps from others. MappingError unless free."""
        runs = coalesce(sorted(pages))
        is_doubled = len(set(pages)) != len(pages)
        if is_doubled or not all(self._free.covers(run) for run in runs):
            raise MappingError(f"device {self.device}: {owner} wants pages that are not free")
        self._share(share, owner)
        for run in runs:
            self._free.take_run(run)
        return self._promise(owner, tuple(pages), tuple(share))

    def restore(self, pages: Sequence[int], owner: str) -> None:
        """Make free pages an owner's, or add the owner to pages in use: what a journal tells."""
        held = [page for page in pages if page in self._owner_of]
        fresh = [page for page in pages if page not in self._owner_of]
        if fresh:
            self.reserve_exactly(fresh, owner).commit()
        self._share(held, owner)

    def free(self, pages: Sequence[int], owner: str) -> int:
        """End an owner's hold of pages, all or none; returns how many pages are free by that.

        Raises MappingError on foreign, free or doubled pages.
        """
        self.check_held(pages, owner)
        return self._let_go(pages, owner)

    def rename_owner(self, pages: Sequence[int], old: str, new: str) -> None:
        """Hand pages from one owner to another, all or none; raises like `free`."""
        self.check_renamable(pages, old, new)
        for page in pages:
            if self._owner_of[page] == old:
                self._owner_of[page] = new
            else:
                others = tuple(name for name in self._sharers[page] if name != old)
                self._sharers[page] = (*others, new)

    def check_renamable(self, pages: Sequence[int], old: str, new: str) -> None:
        """Raise MappingError unless `rename_owner` can do it."""
        self.check_held(pages, old)
        doubled = [page for page in pages if old != new and self._is_held(page, new)]
        if doubled:
            raise MappingError(f"device {self.device}: {new} holds page {doubled[0]} already")

    def holders(self) -> dict[str, int]:
        """owner -> pages, open reservations included: who to ask when a reservation is refused."""
        counts = self.used_by_owner()
        for reservation in self._reservations:
            counts[reservation.owner] = counts.get(reservation.owner, 0) + len(reservation.pages)
        return dict(sorted(counts.items()))

    def used_by_owner(self) -> dict[str, int]:
        """owner -> committed pages."""
        counts: dict[str, int] = {}
        for owner in self._owner_of.values():
            counts[owner] = counts.get(owner, 0) + 1
        return dict(sorted(counts.items()))

    def pages_of(self, owner: str) -> tuple[int, ...]:
        """The committed pages of an owner, ascending."""
        first = [page for page, name in self._owner_of.items() if name == owner]
        further = [page for page, names in self._sharers.items() if owner in names]
        return tuple(sorted(first + further))

    def holders_of(self, page: int) -> tuple[str, ...]:
        """Everyone who holds a page in use, first holder first; empty for any other page."""
        first = self._owner_of.get(page)
        return () if first is None else (first, *self._sharers.get(page, ()))

    def owned_runs(self) -> dict[str, tuple[PageRun, ...]]:
        """owner -> runs of the pages that it holds, shared ones with every holder."""
        pages: dict[str, list[int]] = {}
        for page in sorted(self._owner_of):
            for owner in self.holders_of(page):
                pages.setdefault(owner, []).append(page)
        return {owner: tuple(coalesce(held)) for owner, held in sorted(pages.items())}

    def free_runs(self) -> tuple[PageRun, ...]:
        """The free runs, ascending."""
        return self._free.runs()

    def check(self) -> None:
        """Raise InvariantError unless every page is exactly one of free, reserved and used."""
        free = expand(self._free.runs())
        reserved = [page for entry in self._reservations for page in entry.pages]
        everything = sorted([*free, *reserved, *self._owner_of])
        if everything != list(range(self.total)):
            raise InvariantError(
                f"device {self.device}: {len(free)} free + {len(reserved)} reserved + "
                f"{len(self._owner_of)} used pages are not the {self.total} of the pool"
            )
        if len(free) != self._free.count or len(reserved) != self._reserved_count:
            raise InvariantError(f"device {self.device}: page counters disagree with the tables")
        for page in self._sharers:
            holders = self.holders_of(page)
            if len(holders) < 2 or len(set(holders)) != len(holders):
                raise InvariantError(f"device {self.device}: page {page} is held by {holders}")

    def check_held(self, pages: Iterable[int], owner: str) -> None:
        """Raise MappingError unless the owner holds all of these pages, each named once."""
        seen: set[int] = set()
        for page in pages:
            if not self._is_held(page, owner) or page in seen:
                holder = self._owner_of.get(page)
                state = f"held by {holder}" if holder else "not in use"
                raise MappingError(
                    f"device {self.device}: page {page} does not belong to {owner}: "
                    f"{'named twice' if page in seen else state}"
                )
            seen.add(page)

    def _is_held(self, page: int, owner: str) -> bool:
        return self._owner_of.get(page) == owner or owner in self._sharers.get(page, ())

    def _share(self, pages: Sequence[int], owner: str) -> None:
        for page in pages:
            if page not in self._owner_of or self._is_held(page, owner):
                state = "held by it already" if page in self._owner_of else "not in use"
                raise MappingError(
                    f"device {self.device}: page {page} cannot be shared with {owner}: {state}"
                )
        if len(set(pages)) != len(pages):
            raise MappingError(f"device {self.device}: {owner} names a shared page twice")
        for page in pages:
            self._sharers[page] = (*self._sharers.get(page, ()), owner)

    def _let_go(self, pages: Iterable[int], owner: str) -> int:
        freed: list[int] = []
        for page in pages:
            left = [name for name in self.holders_of(page) if name != owner]
            if left:
                self._owner_of[page] = left[0]
            else:
                del self._owner_of[page]
                freed.append(page)
            if len(left) > 1:
                self._sharers[page] = tuple(left[1:])
            else:
                self._sharers.pop(page, None)
        for run in coalesce(sorted(freed)):
            self._free.give(run)
        return len(freed)

    def _promise(self, owner: str, pages: tuple[int, ...], shared: tuple[int, ...]) -> Reservation:
        reservation = Reservation(self, owner, pages, shared)
        self._reservations.add(reservation)
        self._reserved_count += len(pages)
        return reservation

    def _settle(self, reservation: Reservation, committed: bool) -> None:
        self._reservations.remove(reservation)
        self._reserved_count -= len(reservation.pages)
        if committed:
            self._owner_of.update(dict.fromkeys(reservation.pages, reservation.owner))
            return
        self._let_go(reservation.shared, reservation.owner)
        for run in coalesce(sorted(reservation.pages)):
            self._free.give(run)
