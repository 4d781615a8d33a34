"""Single cases of the pool that the laws do not single out."""

import pytest

from moectl.core.errors import InvariantError, MappingError, PoolExhaustedError
from moectl.memory.backend import PageRun, coalesce, expand
from moectl.memory.pool import PagePool


def test_a_reservation_that_is_not_committed_is_forfeited_at_the_end_of_its_block() -> None:
    pool = PagePool(8)
    with pytest.raises(ValueError), pool.reserve(3, "chat/kv"):
        raise ValueError
    assert pool.free_count == 8
    with pool.reserve(3, "chat/kv") as reservation:
        reservation.commit()
    assert (pool.free_count, pool.used_count) == (5, 3)


def test_the_smallest_run_that_fits_is_taken_lowest_page_first() -> None:
    pool = PagePool(20)
    pages = pool.reserve(20, "a").commit()
    pool.free([*range(2, 7), *range(9, 12), *range(15, 18)], "a")
    assert pool.reserve(3, "b").pages == (9, 10, 11)
    assert pool.reserve(4, "b").pages == (2, 3, 4, 5)
    assert len(pages) == 20


def test_a_scattered_reservation_uses_the_largest_runs() -> None:
    pool = PagePool(12)
    pool.reserve(12, "a").commit()
    pool.free([0, 2, 4, 5, 7, 8, 9], "a")
    assert pool.reserve(5, "b").pages == (4, 5, 7, 8, 9)


def test_an_exhausted_pool_names_what_is_needed_what_is_free_and_who_holds_the_rest() -> None:
    pool = PagePool(10, "d0")
    pool.reserve(4, "chat/kv").commit()
    pool.reserve(3, "chat/experts")
    with pytest.raises(PoolExhaustedError) as refusal:
        pool.reserve(4, "chat/shared")
    assert refusal.value.holders == {"chat/experts": 3, "chat/kv": 4}
    assert "device d0: 4 pages needed, 3 free" in str(refusal.value)


@pytest.mark.parametrize("pages", [[0, 0], [5], [-1], [99]])
def test_double_free_and_foreign_pages_change_nothing(pages: list[int]) -> None:
    pool = PagePool(8)
    pool.reserve(2, "a").commit()
    pool.reserve(2, "b").commit()
    with pytest.raises(MappingError):
        pool.free([1, *pages], "a")
    assert pool.used_by_owner() == {"a": 2, "b": 2}
    pool.check()


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_cannot_be_reserved(count: int) -> None:
    with pytest.raises(MappingError):
        PagePool(4).reserve(count, "a")


def test_the_check_finds_a_page_that_is_owned_twice() -> None:
    pool = PagePool(4)
    pool._owner_of[0] = "thief"
    with pytest.raises(InvariantError):
        pool.check()


def test_runs_are_the_inverse_of_pages() -> None:
    pages = (4, 5, 6, 1, 2, 9, 8)
    runs = [PageRun(4, 3), PageRun(1, 2), PageRun(9, 1), PageRun(8, 1)]
    assert coalesce(pages) == runs
    assert expand(runs) == pages
