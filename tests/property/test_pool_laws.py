"""Which laws hold for a page pool, whatever is asked of it and in whatever order?"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from moectl.core.errors import MappingError, PoolExhaustedError
from moectl.memory.backend import coalesce
from moectl.memory.pool import PagePool, Reservation

TOTAL = 24
OWNERS = st.sampled_from(["chat/shared", "chat/experts", "chat/kv"])


class PoolMachine(RuleBasedStateMachine):
    """Runs a pool beside the plainest model of it: one label per page."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(TOTAL, "d0")
        self.owner_of: dict[int, str] = {}
        self.reserved: dict[int, str] = {}

    @rule(target=reservations, count=st.integers(1, 10), owner=OWNERS)
    def reserve(self, count: int, owner: str) -> Reservation | None:
        free = [page for page in range(TOTAL) if page not in self.owner_of | self.reserved]
        if count > len(free):
            with pytest.raises(PoolExhaustedError) as refusal:
                self.pool.reserve(count, owner)
            assert (refusal.value.needed_pages, refusal.value.free_pages) == (count, len(free))
            assert sum(refusal.value.holders.values()) == TOTAL - len(free)
            return None
        reservation = self.pool.reserve(count, owner)
        assert set(reservation.pages) <= set(free) and len(set(reservation.pages)) == count
        largest_run = max(run.count for run in coalesce(free))
        assert (len(coalesce(reservation.pages)) == 1) == (largest_run >= count)
        self.reserved |= dict.fromkeys(reservation.pages, owner)
        return reservation

    @rule(reservation=consumes(reservations), commit=st.booleans())
    def settle(self, reservation: Reservation | None, commit: bool) -> None:
        if reservation is None:
            return
        for page in reservation.pages:
            del self.reserved[page]
        if commit:
            assert reservation.commit() == reservation.pages == reservation.commit()
            self.owner_of |= dict.fromkeys(reservation.pages, reservation.owner)
            with pytest.raises(MappingError):
                reservation.forfeit()
        else:
            reservation.forfeit()
            reservation.forfeit()
            with pytest.raises(MappingError):
                reservation.commit()

    @rule(pages=st.lists(st.integers(-1, TOTAL), max_size=6), owner=OWNERS)
    def free(self, pages: list[int], owner: str) -> None:
        allowed = len(set(pages)) == len(pages)
        allowed = allowed and all(self.owner_of.get(page) == owner for page in pages)
        if not allowed:
            with pytest.raises(MappingError):
                self.pool.free(pages, owner)
            return
        self.pool.free(pages, owner)
        for page in pages:
            del self.owner_of[page]

    @rule(owner=OWNERS)
    def free_all_of_an_owner(self, owner: str) -> None:
        self.pool.free(self.pool.pages_of(owner), owner)
        self.owner_of = {page: name for page, name in self.owner_of.items() if name != owner}

    @rule(old=OWNERS, new=OWNERS)
    def rename(self, old: str, new: str) -> None:
        self.pool.rename_owner(self.pool.pages_of(old), old, new)
        self.owner_of = {p: new if name == old else name for p, name in self.owner_of.items()}

    @invariant()
    def every_page_is_in_exactly_one_state(self) -> None:
        self.pool.check()
        counts = (self.pool.free_count, self.pool.reserved_count, self.pool.used_count)
        used, reserved = len(self.owner_of), len(self.reserved)
        assert counts == (TOTAL - used - reserved, reserved, used)

    @invariant()
    def usage_is_told_by_owner(self) -> None:
        for owner, count in self.pool.used_by_owner().items():
            assert count == sum(name == owner for name in self.owner_of.values())
        assert sum(self.pool.used_by_owner().values()) == len(self.owner_of)


TestPoolLaws = PoolMachine.TestCase
TestPoolLaws.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
