"""Do experts without padding share their boundary pages, and does a page live as long as needed?"""

import ctypes
import random

import pytest

from moectl.core.errors import InvariantError, MappingError, PoolExhaustedError
from moectl.memory.packed import PackedTable
from moectl.memory.pool import PagePool
from moectl.memory.window import Window

from .conftest import PAGE, PAGES, RunningHmm

SLOT = 2 * PAGE + PAGE // 4  # 2.25 pages


def test_neighbours_share_the_page_between_them_and_waste_nothing() -> None:
    table = PackedTable(SLOT, PAGE, 8)
    plan = table.plan(range(4), "m/experts")
    assert (plan.fresh_places, plan.shared_pages) == (tuple(range(9)), ())
    table.add(plan, range(100, 109))
    assert table.held_bytes == table.used_bytes == 9 * PAGE
    assert [table.references(place) for place in (0, 2, 4, 8)] == [1, 2, 2, 1]
    table.check()


def test_another_owner_shares_the_boundary_page_and_outlives_the_first() -> None:
    table = PackedTable(SLOT, PAGE, 8)
    table.add(table.plan([0], "m/experts"), [10, 11, 12])
    plan = table.plan([1], "m/law/adapters")
    assert (plan.fresh_places, plan.shared_pages) == ((3, 4), (12,))
    assert table.add(plan, [20, 21]) == ((3, 20), (4, 21))
    gone = table.remove([0], "m/experts")
    assert (gone.places, gone.pages) == ((0, 1), (10, 11, 12))  # 12 still has another holder
    assert table.page_at(2) == 12 and table.pages_of("m/law/adapters") == (12, 20, 21)
    table.check()


def test_holes_are_filled_before_the_window_grows() -> None:
    table = PackedTable(SLOT, PAGE, 12)
    for owner, count in (("a", 3), ("b", 2), ("c", 3)):
        plan = table.plan(table.choose(count), owner)
        table.add(plan, range(1000 * (ord(owner)), 1000 * ord(owner) + len(plan.fresh_places)))
    table.remove([3, 4], "b")
    assert table.choose(2) == (3, 4)
    assert table.choose(3) == (3, 4, 8)
    with pytest.raises(MappingError, match="7 slots are wanted, 6 of 12 are free"):
        table.choose(7)


def test_wrong_slots_and_stale_plans_are_typed_errors() -> None:
    table = PackedTable(SLOT, PAGE, 4)
    plan = table.plan([1], "a")
    for wrong in ([1, 1], [4], [-1]):
        with pytest.raises(MappingError):
            table.plan(wrong, "a")
    table.add(plan, [1, 2, 3])
    for failing in (
        lambda: table.plan([1], "b"),
        lambda: table.add(plan, [1, 2, 3]),
        lambda: table.remove([1], "b"),
        lambda: table.remove([0], "a"),
        lambda: table.add(table.plan([3], "a"), [1]),
    ):
        with pytest.raises(MappingError):
            failing()
    table._holds[2]["a"] += 1
    with pytest.raises(InvariantError):
        table.check()


def test_random_loads_and_evictions_keep_bytes_pages_and_references(hmm: RunningHmm) -> None:
    client = hmm.client()
    handle = client.device("d0")
    table = PackedTable(SLOT, PAGE, 40)
    held: dict[str, tuple[int, ...]] = {}
    rng = random.Random(7)
    with Window(handle, table.window_bytes, writable=True) as window:
        for number in range(120):
            owner = f"m/a{rng.randrange(6)}/adapters"
            if owner in held:
                gone = table.remove(held.pop(owner), owner)
                client.free("d0", gone.pages, owner)
                for place in gone.places:
                    window.unmap(place * PAGE, PAGE)
            else:
                plan = table.plan(table.choose(rng.randint(1, 6)), owner)
                fresh, share = len(plan.fresh_places), plan.shared_pages
                with client.reserve("d0", fresh, owner, share) as reservation:
                    for place, page in table.add(plan, reservation.pages):
                        window.map(place * PAGE, [page])
                    reservation.commit()
                held[owner] = plan.slots
                for slot in plan.slots:
                    mark = int(owner[3]) + 1
                    ctypes.memset(window.address + table.offset(slot), mark, SLOT)
            table.check()
            client.check()
            for name, slots in held.items():
                for slot in slots:
                    data = ctypes.string_at(window.address + table.offset(slot), SLOT)
                    assert set(data) == {int(name[3]) + 1}, number
        usage = client.usage()[0]
        assert sum(usage["used"].values()) * PAGE == table.held_bytes
        assert usage["free"] == PAGES - table.held_bytes // PAGE


def test_a_shared_page_is_free_when_its_last_holder_lets_go() -> None:
    pool = PagePool(8, "d0")
    pages = pool.reserve(3, "a/x").commit()
    second = pool.reserve(1, "b/x", share=[pages[2]])
    assert pool.holders_of(pages[2]) == ("a/x", "b/x") and pool.shared_count == 1
    assert pool.free(pages, "a/x") == 2
    pool.check()
    assert pool.pages_of("b/x") == (pages[2],)
    second.commit()
    assert pool.free([*second.pages, pages[2]], "b/x") == 2
    assert (pool.free_count, pool.shared_count) == (8, 0)
    pool.check()


def test_a_forfeit_ends_the_share_too() -> None:
    pool = PagePool(8, "d0")
    pages = pool.reserve(2, "a/x").commit()
    pool.reserve(1, "b/x", share=pages).forfeit()
    assert pool.holders_of(pages[0]) == ("a/x",) and pool.free_count == 6
    pool.check()


def test_what_cannot_be_shared_is_refused_and_nothing_changes() -> None:
    pool = PagePool(4, "d0")
    pages = pool.reserve(2, "a/x").commit()
    for share in ([3], [pages[0], pages[0]]):
        with pytest.raises(MappingError):
            pool.reserve(1, "b/x", share=share)
    with pytest.raises(MappingError):
        pool.reserve(1, "a/x", share=pages)
    with pytest.raises(MappingError):
        pool.reserve(0, "b/x")
    with pytest.raises(PoolExhaustedError):
        pool.reserve(3, "b/x", share=pages)
    assert pool.shared_count == 0 and pool.free_count == 2
    pool.check()


def test_sharers_are_renamed_and_named_among_the_holders() -> None:
    pool = PagePool(4, "d0")
    (page,) = pool.reserve(1, "a/x").commit()
    pool.reserve(0, "b/x", share=[page]).commit()
    pool.rename_owner([page], "b/x", "c/x")
    assert pool.holders_of(page) == ("a/x", "c/x")
    with pytest.raises(MappingError):
        pool.rename_owner([page], "c/x", "a/x")
    pool.rename_owner([page], "a/x", "d/x")
    assert pool.owned_runs().keys() == {"c/x", "d/x"}
    pool.check()
