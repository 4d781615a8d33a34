"""How do experts whose size is no multiple of the page stand side by side without padding?

A `PackedTable` is one window of equal slots with nothing between them: slot s begins at byte
`s * slot_bytes`, wherever that is in a page. A page on which one slot ends and the next begins is
shared by both, with a reference for each slot that touches it, and lives until the last one goes.
So experts that stand side by side waste nothing, and a run of them at most its two ends.

A slot keeps its place for life: bytes cannot be remapped to another offset within a page. The next
epoch keeps kept experts where they are and puts new ones into free slots; `choose` takes those that
need the fewest fresh pages, so holes fill up first.

    table.plan(slots, owner)        which places need a fresh page, which pages are shared with whom
    pool/HMM reserve(fresh, owner, share)
    table.add(plan, pages)          the places to map, and nothing else is touched
    table.remove(slots, owner)      the places to unmap, the pages this owner lets go of

Places are numbers of pages in the window, pages are numbers of the device. Pure: no torch, no IO.
The pool is the truth about pages, this table about places; `check` compares the references.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.errors import InvariantError, MappingError


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """What a set of slots needs before an owner may use it."""

    owner: str
    slots: tuple[int, ...]
    fresh_places: tuple[int, ...]  # places without a page: each gets a fresh one, in this order
    shared_pages: tuple[int, ...]  # pages of others on which these slots begin or end


@dataclass(frozen=True, slots=True)
class Removal:
    """What is left to do after slots were given up."""

    places: tuple[int, ...]  # places that no slot touches any more: unmap them
    pages: tuple[int, ...]  # pages that this owner lets go of; others may still hold them


class PackedTable:
    """Slots of one window: who is in them and which pages stand below."""

    def __init__(self, slot_bytes: int, page_bytes: int, slot_count: int) -> None:
        if min(slot_bytes, page_bytes, slot_count) <= 0:
            raise MappingError(
                f"a table of {slot_count} slots of {slot_bytes} bytes on pages of {page_bytes}"
            )
        self.slot_bytes, self.page_bytes, self.slot_count = slot_bytes, page_bytes, slot_count
        self._owner_of: dict[int, str] = {}  # slot -> owner
        self._page_at: dict[int, int] = {}  # place -> page
        self._holds: dict[int, dict[str, int]] = {}  # place -> owner -> slots that touch it

    @property
    def window_bytes(self) -> int:
        """Bytes of addresses that the table spans, in whole pages."""
        return self.places_of(self.slot_count - 1).stop * self.page_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of experts in the table, without what stands beside them on the same pages."""
        return len(self._owner_of) * self.slot_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of pages below the slots in use."""
        return len(self._page_at) * self.page_bytes

    def offset(self, slot: int) -> int:
        """Where a slot begins in the window, in bytes."""
        return slot * self.slot_bytes

    def places_of(self, slot: int) -> range:
        """The places that a slot touches."""
        begin = slot * self.slot_bytes
        return range(begin // self.page_bytes, -(-(begin + self.slot_bytes) // self.page_bytes))

    def references(self, place: int) -> int:
        """How many slots in use touch a place."""
        return sum(self._holds.get(place, {}).values())

    def pages_of(self, owner: str) -> tuple[int, ...]:
        """Pages that an owner holds, ascending; shared ones too."""
        held = (self._page_at[place] for place, owners in self._holds.items() if owner in owners)
        return tuple(sorted(held))

    def page_at(self, place: int) -> int:
        """The page below a place; KeyError where there is none."""
        return self._page_at[place]

    def choose(self, count: int) -> tuple[int, ...]:
        """Free slots for `count` experts that need few fresh pages: holes before the open end.

        Raises MappingError when fewer are free.
        """
        free = [slot for slot in range(self.slot_count) if slot not in self._owner_of]
        if len(free) < count:
            raise MappingError(
                f"{count} slots are wanted, {len(free)} of {self.slot_count} are free",
                next_step="evict an adapter, or give the window more slots",
            )
        order = sorted(_runs(free), key=lambda run: self._run_cost(run, count))
        chosen = [slot for run in order for slot in run][:count]
        return tuple(sorted(chosen))

    def plan(self, slots: Iterable[int], owner: str) -> PackedPlan:
        """What these slots need; MappingError for a slot outside, in use or named twice."""
        wanted = sorted(slots)
        for slot, after in zip(wanted, [*wanted[1:], None], strict=True):
            if not 0 <= slot < self.slot_count or slot in self._owner_of or slot == after:
                raise MappingError(f"slot {slot} is not a free slot of {self.slot_count}")
        places = sorted({place for slot in wanted for place in self.places_of(slot)})
        shared = [
            self._page_at[place]
            for place in places
            if place in self._page_at and owner not in self._holds[place]
        ]
        fresh = tuple(place for place in places if place not in self._page_at)
        return PackedPlan(owner, tuple(wanted), fresh, tuple(shared))

    def add(self, plan: PackedPlan, pages: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Put an owner into its slots; returns (place, page) pairs to map.

        Raises MappingError when the table has changed since the plan or the count is wrong.
        """
        if len(pages) != len(plan.fresh_places) or plan != self.plan(plan.slots, plan.owner):
            raise MappingError(f"the plan of {plan.owner} does not fit the table any more")
        fresh = tuple(zip(plan.fresh_places, pages, strict=True))
        self._page_at.update(fresh)
        for slot in plan.slots:
            self._owner_of[slot] = plan.owner
            for place in self.places_of(slot):
                holds = self._holds.setdefault(place, {})
                holds[plan.owner] = holds.get(plan.owner, 0) + 1
        return fresh

    def remove(self, slots: Iterable[int], owner: str) -> Removal:
        """Give up an owner's slots, all or none; MappingError on slots that are not its own."""
        gone = sorted(set(slots))
        for slot in gone:
            if self._owner_of.get(slot) != owner:
                raise MappingError(f"slot {slot} is not in use by {owner}")
        places: list[int] = []
        pages: list[int] = []
        for slot in gone:
            del self._owner_of[slot]
            for place in self.places_of(slot):
                holds = self._holds[place]
                holds[owner] -= 1
                if holds[owner]:
                    continue
                del holds[owner]
                pages.append(self._page_at[place])
                if not holds:
                    del self._holds[place], self._page_at[place]
                    places.append(place)
        return Removal(tuple(places), tuple(pages))

    def check(self) -> None:
        """Raise InvariantError unless references, pages and slots agree."""
        counted: dict[int, dict[str, int]] = {}
        for slot, owner in self._owner_of.items():
            for place in self.places_of(slot):
                holds = counted.setdefault(place, {})
                holds[owner] = holds.get(owner, 0) + 1
        if counted != self._holds or counted.keys() != self._page_at.keys():
            raise InvariantError("references of packed slots disagree with the slots in use")
        if len(set(self._page_at.values())) != len(self._page_at):
            raise InvariantError("one page stands at two places of a packed window")

    def _run_cost(self, run: list[int], count: int) -> tuple[bool, int, int]:
        """Holes that the experts fill up first, the tightest ones before; the open end last."""
        is_open_end = run[-1] == self.slot_count - 1
        return is_open_end, abs(len(run) - count), run[0]


def _runs(slots: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for slot in slots:
        if runs and runs[-1][-1] + 1 == slot:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs
