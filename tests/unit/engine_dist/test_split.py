"""Rows of an expert are spread over its copies: by load, at home first, always to a holder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.agents.engine.split import CopySplit
from moectl.kernels.token_split import copy_table, split_shares

K = 2


def ids_of(seed: int, rows: int, experts: int, skew: float = 0.0) -> np.ndarray:
    """[rows, K] distinct experts per row; with skew, low ids are wanted more."""
    random = np.random.default_rng(seed)
    weight = 1.0 / (1 + np.arange(experts)) ** skew
    chosen = [
        random.choice(experts, K, replace=False, p=weight / weight.sum()) for _ in range(rows)
    ]
    return np.array(chosen, dtype=np.int64).reshape(rows, K)


@st.composite
def cases(draw: st.DrawFn):
    width, experts = draw(st.integers(1, 4)), draw(st.integers(K, 6))
    holders = st.lists(st.integers(0, width - 1), min_size=1, max_size=width, unique=True)
    owners = [sorted(draw(holders)) for _ in range(experts)]
    rows = draw(st.lists(st.integers(0, 20), min_size=width, max_size=width))
    return width, owners, rows, draw(st.integers(0, 99))


@given(cases())
def test_every_pair_goes_to_a_holder_of_its_expert_and_always_to_the_same(case) -> None:
    width, owners, rows, seed = case
    for rank in range(width):
        ids = ids_of(seed + rank, rows[rank], len(owners))
        first, again = (CopySplit([owners], width, rank).ranks(0, ids, rows) for _ in range(2))
        assert first.shape == ids.shape and np.array_equal(first, again)
        for expert, chosen in zip(ids.ravel(), first.ravel(), strict=True):
            assert chosen in owners[expert]


def run_ranks(owners, rows, skew: float, steps: int = 6):
    """(pairs per rank of the last step, pairs that travelled, the least possible largest load)."""
    width = len(rows)
    splits = [CopySplit([owners], width, rank) for rank in range(width)]
    for step in range(steps):
        load, travelled, wanted = np.zeros(width), 0, np.zeros(len(owners))
        for rank, split in enumerate(splits):
            ids = ids_of(100 * step + rank, rows[rank], len(owners), skew)
            to = split.ranks(0, ids, rows)
            load += np.bincount(to.ravel(), minlength=width)
            travelled += int((to != rank).sum())
            wanted += np.bincount(ids.ravel(), minlength=len(owners))
    copies = copy_table(owners, width)
    shares = split_shares(wanted, copies)
    expert_C = np.repeat(np.arange(len(owners)), np.diff(copies.start_E1))
    least = np.bincount(copies.rank_C, weights=shares * wanted[expert_C], minlength=width).max()
    return load, travelled, least


def test_with_equal_loads_and_copies_everywhere_nothing_travels() -> None:
    everywhere = [list(range(4))] * 8
    load, travelled, _ = run_ranks(everywhere, [50] * 4, skew=1.0)
    assert load == pytest.approx([50 * K] * 4, rel=0.03)
    assert travelled / load.sum() < 0.1  # three quarters would, were home not preferred


def test_a_rank_with_all_the_rows_sends_away_what_is_more_than_its_part() -> None:
    everywhere = [list(range(4))] * 8
    load, travelled, least = run_ranks(everywhere, [400, 0, 0, 0], skew=1.0)
    assert load.max() <= least * 1.05
    assert travelled == pytest.approx(400 * K * 3 / 4, rel=0.05)


@pytest.mark.parametrize("rows", [(200, 200, 200, 200), (500, 100, 100, 100)])
def test_a_hot_expert_with_two_copies_is_split_unequally_and_near_the_least_load(rows) -> None:
    # Expert 0 is wanted most; its copies stand on rank 0, which has much else, and on rank 3.
    owners = [[0, 3], [0], [0, 1], [1], [1, 2], [2], [2, 3], [3]]
    load, _, least = run_ranks(owners, list(rows), skew=1.2)
    first_copy = run_ranks([[each[0]] for each in owners], list(rows), skew=1.2)[0]
    assert load.sum() == sum(rows) * K
    assert load.max() <= 1.10 * least < first_copy.max()


def test_a_change_of_workload_is_followed_within_some_steps() -> None:
    owners = [[0, 1], [1, 2], [2, 3], [3, 0]]
    split = CopySplit([owners], 4, 0)
    for _ in range(50):
        split.ranks(0, np.array([[0, 1]] * 100), [100, 100, 100, 100])
    for _ in range(40):
        split.ranks(0, np.array([[2, 3]] * 100), [100, 100, 100, 100])
    recent = split._recent_LE[0]
    assert recent[:2].sum() < 0.05 * recent.sum()


@pytest.mark.parametrize("owners", [[[[]]], [[[0, 0]]], [[[0], [2]]]])
def test_an_impossible_placement_is_refused(owners) -> None:
    with pytest.raises(ValueError, match="copies on ranks"):
        CopySplit(owners, 2, 0)
