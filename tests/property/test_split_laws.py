"""The token split is the best there is, its shares are whole, and C and Python agree."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.core import token_split
from moectl.kernels.token_split import (
    CopyTable,
    assign_copies,
    copy_table,
    equal_shares,
    split_shares,
)


@st.composite
def layers(draw: st.DrawFn, ranks_max: int = 6) -> tuple[np.ndarray, list[list[int]], int]:
    """Loads, owners and width; zeros, ties and very unequal loads among them."""
    width = draw(st.integers(1, ranks_max))
    count = draw(st.integers(1, 12))
    holders = st.lists(st.integers(0, width - 1), min_size=1, max_size=width, unique=True)
    owners = draw(st.lists(holders, min_size=count, max_size=count))
    load = st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 100_000))
    loads = draw(st.lists(load, min_size=count, max_size=count))
    return np.asarray(loads, dtype=np.float64), owners, width


def device_loads(load_E: np.ndarray, share_C: np.ndarray, copies: CopyTable) -> np.ndarray:
    work_C = share_C * np.repeat(load_E, np.diff(copies.start_E1))
    return np.bincount(copies.rank_C, weights=work_C, minlength=copies.width)


def least_possible(load_E: np.ndarray, owners: list[list[int]], width: int) -> float:
    """By duality: ranks that hold all copies of some experts share at least those experts' work."""
    ranks = range(width)
    sets = itertools.chain.from_iterable(
        itertools.combinations(ranks, size) for size in range(1, width + 1)
    )
    return max(
        sum(load for load, on in zip(load_E, owners, strict=True) if set(on) <= set(chosen))
        / len(chosen)
        for chosen in sets
    )


@settings(max_examples=150, deadline=None)
@given(layers())
def test_no_split_has_a_smaller_largest_load(layer) -> None:
    load_E, owners, width = layer
    copies = copy_table(owners, width)
    share_C = split_shares(load_E, copies)
    largest = device_loads(load_E, share_C, copies).max()
    assert largest <= least_possible(load_E, owners, width) * (1 + 1e-8) + 1e-9


@settings(max_examples=100, deadline=None)
@given(layers(ranks_max=12))
def test_shares_are_not_negative_and_sum_to_one(layer) -> None:
    load_E, owners, width = layer
    copies = copy_table(owners, width)
    for share_C in (split_shares(load_E, copies), equal_shares(copies)):
        assert share_C.min() >= 0
        assert np.allclose(np.add.reduceat(share_C, copies.start_E1[:-1]), 1.0, atol=1e-9)


@pytest.mark.skipif(token_split.extension is None, reason="the C loops were not built")
@settings(max_examples=100, deadline=None)
@given(layers(ranks_max=12), st.integers(0, 8))
def test_the_compiled_loops_equal_the_reference(layer, sweeps: int) -> None:
    load_E, owners, width = layer
    copies = copy_table(owners, width)
    share_C = np.empty(len(copies.rank_C))
    start, rank = copies.start_E1, copies.rank_C
    fast = token_split.extension.level(load_E, start, rank, share_C, width, sweeps)
    slow = token_split.Split(load_E.tolist(), start.tolist(), rank.tolist(), width)
    assert slow.level(sweeps) == pytest.approx(fast, rel=1e-9)
    assert np.allclose(slow.shares(), share_C, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(layers(ranks_max=8), st.floats(0, 0.999), st.integers(0, 2**31))
def test_pairs_go_to_copies_of_their_expert_within_one_of_the_share(layer, phase, seed) -> None:
    load_E, owners, width = layer
    copies = copy_table(owners, width)
    share_C = split_shares(load_E, copies)
    expert_P = np.random.default_rng(seed).integers(0, len(owners), size=200)
    rank_P = assign_copies(expert_P, share_C, copies, phase)
    for expert, on in enumerate(owners):
        mine = rank_P[expert_P == expert]
        assert set(mine.tolist()) <= set(on)
        for place, rank in enumerate(sorted(on)):
            due = share_C[copies.start_E1[expert] + place] * len(mine)
            assert abs((mine == rank).sum() - due) <= 1 + 1e-6


def test_a_long_chain_of_copies_is_levelled_whole() -> None:
    """Work has to travel over every rank: the worst case of pouring alone."""
    width = 64
    owners = [[0], *([rank, rank + 1] for rank in range(width - 1))]
    load_E = np.asarray([0.0, *[1.0] * (width - 1)])
    copies = copy_table(owners, width)
    share_C = split_shares(load_E, copies)
    assert device_loads(load_E, share_C, copies).max() == pytest.approx((width - 1) / width)


def test_copies_of_a_table_are_checked() -> None:
    for owners in ([[]], [[0, 0]], [[2]], [[-1]]):
        with pytest.raises(ValueError, match="copies on ranks"):
            copy_table(owners, 2)
    copies = copy_table([[0], [0, 1]], 2)
    assert copies.is_free
    with pytest.raises(ValueError, match="do not fit together"):
        split_shares(np.ones(3), copies)


def test_without_the_extension_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = copy_table([[0], [0, 1], [1, 2], [2]], 3)
    load_E = np.asarray([5.0, 4.0, 3.0, 2.0])
    fast = split_shares(load_E, copies)
    monkeypatch.setattr(token_split, "extension", None)
    assert token_split.backend_name() == "reference"
    assert np.allclose(split_shares(load_E, copies), fast)
    with pytest.raises(ValueError, match="do not fit together"):
        split_shares(np.ones(3), copies)
