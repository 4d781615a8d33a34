"""Which pages of a device are free, promised or in use, and by whom?

Pages go `free -> reserved -> used -> free`. A reservation is a promise that is either committed
(the pages become the owner's) or forfeited (they are free again); as a context manager it forfeits
unless committed, so a failed transfer cannot leak. An owner is a label such as "chat/experts".

The pool prefers consecutive pages, because a run is one mapping and one system call: the smallest
free run that fits, lowest page first (low pages were used before, so their memory is already
touched); without one, the largest runs first.

Pure: no IO, no clock. It must never touch memory, nor know who is on the other end of a socket.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from enum import StrEnum
from types import TracebackType

from ..core.errors import InvariantError, MappingError, PoolExhaustedError
from .backend import PageRun, coalesce, expand


class ReservationState(StrEnum):
    """Committed and forfeited are final."""

    OPEN = "open"
    COMMITTED = "committed"
    FORFEITED = "forfeited"


class Reservation:
    """Pages promised to an owner, known from the start so that they can be filled before commit."""

    def __init__(self, pool: "PagePool", owner: str, pages: tuple[int, ...]) -> None:
        self.owner = owner
        self.pages = pages
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
        self._free = _FreeRuns(total_pages)
        self._owner_of: dict[int, str] = {}
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

    def reserve(self, pages: int, owner: str) -> Reservation:
        """Promise `pages` pages to `owner`, consecutive ones where possible.

        Raises PoolExhaustedError with needed, free and holders; MappingError for a count below 1.
        """
        if pages <= 0:
            raise MappingError(f"device {self.device}: a reservation of {pages} pages by {owner}")
        if pages > self._free.count:
            raise PoolExhaustedError(self.device, pages, self._free.count, self.holders())
        reservation = Reservation(self, owner, expand(self._free.take(pages)))
        self._reservations.add(reservation)
        self._reserved_count += pages
        return reservation

    def free(self, pages: Sequence[int], owner: str) -> None:
        """Return an owner's pages, all or none; MappingError on foreign, free or doubled ones."""
        self._check_owned(pages, owner)
        for page in pages:
            del self._owner_of[page]
        for run in coalesce(sorted(pages)):
            self._free.give(run)

    def rename_owner(self, pages: Sequence[int], old: str, new: str) -> None:
        """Hand pages from one owner to another, all or none; raises like `free`."""
        self._check_owned(pages, old)
        for page in pages:
            self._owner_of[page] = new

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
        return tuple(sorted(page for page, name in self._owner_of.items() if name == owner))

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

    def _check_owned(self, pages: Iterable[int], owner: str) -> None:
        seen: set[int] = set()
        for page in pages:
            holder = self._owner_of.get(page)
            if holder != owner or page in seen:
                state = f"held by {holder}" if holder else "not in use"
                raise MappingError(
                    f"device {self.device}: page {page} does not belong to {owner}: "
                    f"{'named twice' if page in seen else state}"
                )
            seen.add(page)

    def _settle(self, reservation: Reservation, committed: bool) -> None:
        self._reservations.remove(reservation)
        self._reserved_count -= len(reservation.pages)
        if committed:
            self._owner_of.update(dict.fromkeys(reservation.pages, reservation.owner))
            return
        for run in coalesce(sorted(reservation.pages)):
            self._free.give(run)


class _FreeRuns:
    """Free pages as sorted, non-touching runs; each operation is a search and a short edit."""

    def __init__(self, total: int) -> None:
        self._firsts = [0]
        self._count_at = {0: total}
        self.count = total

    def runs(self) -> tuple[PageRun, ...]:
        return tuple(PageRun(first, self._count_at[first]) for first in self._firsts)

    def take(self, pages: int) -> list[PageRun]:
        """The smallest run that fits, else the largest runs until it is enough."""
        self.count -= pages
        fitting = [run for run in self.runs() if run.count >= pages]
        if fitting:
            best = min(fitting, key=lambda run: (run.count, run.first))
            return [self._cut(best, pages)]
        taken: list[PageRun] = []
        for run in sorted(self.runs(), key=lambda run: (-run.count, run.first)):
            taken.append(self._cut(run, min(run.count, pages)))
            pages -= taken[-1].count
            if not pages:
                break
        return sorted(taken, key=lambda run: run.first)

    def give(self, run: PageRun) -> None:
        """Insert a run and merge it with the neighbours that it touches."""
        self.count += run.count
        first, end = run.first, run.first + run.count
        at = bisect_left(self._firsts, first)
        if at < len(self._firsts) and self._firsts[at] == end:
            end += self._remove(self._firsts[at])
        if at > 0 and self._firsts[at - 1] + self._count_at[self._firsts[at - 1]] == first:
            first = self._firsts[at - 1]
            self._remove(first)
        insort(self._firsts, first)
        self._count_at[first] = end - first

    def _cut(self, run: PageRun, pages: int) -> PageRun:
        self._remove(run.first)
        if run.count > pages:
            insort(self._firsts, run.first + pages)
            self._count_at[run.first + pages] = run.count - pages
        return PageRun(run.first, pages)

    def _remove(self, first: int) -> int:
        del self._firsts[bisect_left(self._firsts, first)]
        return self._count_at.pop(first)
