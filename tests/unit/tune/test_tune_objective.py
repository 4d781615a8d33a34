"""A winner beats the present settings only when alternating pairs say so."""

import dataclasses

import pytest

from moectl.cli.tune.measure import Measured, Track
from moectl.cli.tune.objective import (
    CHANCE_MAX,
    Limits,
    Pair,
    judge,
    partial_score,
    wins_needed,
)
from moectl.cli.tune.workload import Ask

RUN = Measured(1.0, 1000, 0.1, 0.2, 0.1, 0.01, 0.02, 0.01, 4.0, 100, 0)


def pair(ratio: float, **winner: float) -> Pair:
    return Pair(RUN, dataclasses.replace(RUN, seconds=1 / ratio, **winner))


def test_seven_of_eight_pairs_must_be_won() -> None:
    assert [wins_needed(count) for count in (5, 6, 7, 8, 10, 12)] == [5, 6, 7, 7, 9, 10]
    assert judge([pair(1.1)] * 7 + [pair(0.9)], Limits()).beats
    verdict = judge([pair(1.1)] * 6 + [pair(0.9)] * 2, Limits())
    assert (verdict.beats, verdict.wins, verdict.wins_needed) == (False, 6, 7)
    assert "noise" in verdict.reason


def test_equal_settings_are_called_better_less_often_than_the_rule_says() -> None:
    wins = sum(
        judge([pair(1.1 if outcome >> bit & 1 else 0.9) for bit in range(8)], Limits()).beats
        for outcome in range(256)
    )
    assert 0 < wins / 256 <= CHANCE_MAX


def test_a_gain_below_two_percent_is_no_gain() -> None:
    verdict = judge([pair(1.01)] * 8, Limits())
    assert not verdict.beats and "below 2%" in verdict.reason
    assert (verdict.ratio_min, verdict.ratio_median, verdict.ratio_max) == pytest.approx(
        (1.01,) * 3
    )


def test_a_faster_winner_that_breaks_a_limit_does_not_win() -> None:
    limits = Limits(ttft_s=0.25)
    assert judge([pair(2.0)] * 8, limits).beats
    slow = judge([pair(2.0, ttft_p95=0.3)] * 8, limits)
    assert not slow.beats and "limits" in slow.reason


def test_a_slower_winner_wins_when_the_present_settings_break_the_limits() -> None:
    kept = judge([pair(0.8, itl_p95=0.005)] * 8, Limits(itl_s=0.01))
    assert kept.beats and "do not" in kept.reason


def test_a_run_that_breaks_a_limit_ranks_below_every_run_that_keeps_it() -> None:
    def track(gap_s: float) -> Track:
        found = Track([Ask((1, 2, 3), 3)])
        for index in range(3):
            found.token(0, index, 0.1 + index * gap_s)
        return found

    limits = Limits(itl_s=0.05)
    kept, broken, worse = (track(gap) for gap in (0.04, 0.06, 0.12))
    assert (kept.done, kept.tokens, kept.total) == (6, 3, 6)
    slow, fast = partial_score(kept, 10.0, limits), partial_score(broken, 0.1, limits)
    assert slow > fast > partial_score(worse, 0.1, limits) > 0
