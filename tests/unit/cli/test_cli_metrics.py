"""Gaps and percentiles of the demo, from arrival times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.cli.demo.metrics import (
    Trace,
    Window,
    failures_in,
    gaps_of,
    longest_gap_ms,
    mismatches,
    percentile,
    steady_p99_ms,
    tokens_per_second,
)


def trace(arrivals: list[float], **changes: object) -> Trace:
    fields: dict[str, object] = {
        "conversation": 0,
        "turn": 0,
        "sent_at": 0.0,
        "arrivals": tuple(arrivals),
        "ended_at": max(arrivals, default=0.0),
        "text": "abc",
    }
    return Trace(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_wait_for_the_first_token_is_no_gap() -> None:
    assert [g.milliseconds for g in gaps_of(trace([5.0, 5.5, 6.5]))] == [500.0, 1000.0]
    assert list(gaps_of(trace([5.0]))) == list(gaps_of(trace([]))) == []


def test_a_gap_that_only_touches_the_window_counts_as_the_longest() -> None:
    seen = [trace([1.0, 3.0, 3.1])]
    assert longest_gap_ms(seen, Window(2.9, 5.0), replayed=False) == pytest.approx(2000.0)
    assert longest_gap_ms(seen, Window(3.05, 5.0), replayed=False) == pytest.approx(100.0)
    assert longest_gap_ms(seen, Window(8.0, 9.0), replayed=False) == 0.0


def test_replayed_requests_are_told_apart_from_those_that_stayed() -> None:
    seen = [trace([1.0, 1.1]), trace([1.0, 4.0], replays=1)]
    window = Window(0.0, 10.0)
    assert longest_gap_ms(seen, window, replayed=False) == pytest.approx(100.0)
    assert longest_gap_ms(seen, window, replayed=True) == pytest.approx(3000.0)


def test_only_gaps_wholly_inside_are_steady() -> None:
    seen = [trace([0.0, 1.0, 1.01, 1.02, 9.0])]
    assert steady_p99_ms(seen, Window(0.5, 2.0)) == pytest.approx(10.0)
    assert steady_p99_ms(seen, Window(20.0, 30.0)) == 0.0


def test_percentile_is_by_nearest_rank() -> None:
    assert percentile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert percentile([float(i) for i in range(1, 101)], 0.99) == 99.0
    assert percentile([], 0.99) == 0.0
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], 0.0)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_percentile_is_one_of_the_values_and_covers_its_share(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9


def test_mismatches_count_finished_requests_with_other_text() -> None:
    reference = {(0, 0): "abc", (0, 1): "x"}
    seen = [trace([]), trace([], turn=1), trace([], text="abd"), trace([], text="", error="gone")]
    assert mismatches(seen, reference) == 2


def test_failures_count_when_the_request_was_alive_in_the_window() -> None:
    early = trace([], sent_at=0.0, ended_at=1.0, error="x")
    across = trace([], sent_at=1.0, ended_at=3.0, error="x")
    assert failures_in([early, across, trace([2.5])], Window(2.0, 4.0)) == 1


def test_rate_counts_arrivals_in_the_window() -> None:
    assert tokens_per_second([trace([0.0, 1.0, 1.5, 7.0])], Window(0.5, 2.5)) == 1.0
    assert tokens_per_second([], Window(1.0, 1.0)) == 0.0
