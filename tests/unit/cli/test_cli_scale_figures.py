"""What the scale bench counts, from traces made by hand."""

from dataclasses import replace

import pytest

from moectl.cli.bench.scale_figures import Act, Bytes, by_name, row_of, worst
from moectl.cli.bench.scale_fleet import held_bytes
from moectl.cli.bench.scale_free import free_row, link_bytes_per_s
from moectl.cli.demo.metrics import Trace, Window
from moectl.cli.demo.residency import Sample
from moectl.cli.fleet_view import TransitionView
from moectl.cli.scaling import summary_lines
from moectl.core.errors import MoectlError

SIZES = Bytes(expert=10, kv_block=4)


def scale(before: int = 2, after: int = 4) -> TransitionView:
    return TransitionView(
        "op",
        "chat",
        "scale",
        "done",
        before,
        after,
        accepted_at=10.0,
        phase_at={"prepare": 10.0, "commit": 11.0, "retire": 12.0, "done": 13.0},
        deadline_at=0.0,
        prediction={"bytes_moved": 80, "bytes_lower_bound": 80},
        actual={"ready_s": 2.0, "bytes_moved": 80.0},
    )


def act(transition: TransitionView) -> Act:
    kv_before, kv_after = {"a": 5, "b": 5}, {"a": 15, "b": 15, "c": 5, "d": 5}
    return Act(transition, Window(0.0, 10.0), Window(13.0, 20.0), kv_before, kv_after)


def trace() -> Trace:
    arrivals = tuple(float(second) for second in range(1, 20))
    return Trace(0, 0, 0.5, arrivals, 20.0, "text")


def test_one_scale_gives_every_key():
    samples = [Sample(9.0, 400), Sample(12.0, 500), Sample(13.5, 460)]
    row = row_of([act(scale())], [trace()], samples, SIZES)
    assert row["ready_s"] == 2.0 and row["done_s"] == 3.0
    assert row["longest_gap_ms"] == 1000.0 and row["gap_over_p99"] == 1.0
    assert row["bytes_ratio"] == 1.0 and row["failed"] == 0
    assert row["peak_bytes_ratio"] == 1.0  # 500 less four staging experts
    assert (row["kv_blocks_before"], row["kv_blocks_after"]) == (10, 40)
    assert row["kv_recovered"] == 1.0  # 20 blocks of 4 bytes from 80 bytes that moved


def test_the_worst_is_the_least_of_shares_and_the_sum_of_failures():
    rows = [{"kv_recovered": 1.0, "failed": 1, "ready_s": 2.0}] * 2
    rows += [{"kv_recovered": 0.5, "failed": 0, "ready_s": 1.0}]
    assert worst(rows) == {"kv_recovered": 0.5, "failed": 2, "ready_s": 2.0}


def test_a_device_is_free_when_its_pages_are_back_and_the_bound_allows_for_its_kv():
    moved = {"kv_moved_bytes": 500.0, "requests_moved": 2.0, "move_tail_ms": 20.0}
    row = free_row(replace(scale(4, 2), actual=moved), link=1000.0)
    assert (row["free_device_s"], row["free_device_bound_s"]) == (3.0, 2.5)
    assert (row["requests_moved"], row["requests_replayed"]) == (2, 0)
    with pytest.raises(MoectlError, match="forfeited"):
        free_row(replace(scale(), phase="forfeited", phase_at={}), link=1.0)


def test_the_link_between_two_addresses_is_measured_by_what_goes_over_it():
    assert link_bytes_per_s(4 << 20) > 1 << 20


def test_people_are_told_what_became_of_requests_only_where_ranks_left():
    figures = {"requests_moved": 2.0, "requests_replayed": 1.0, "kv_moved_bytes": 2048.0}
    prediction = {"bytes_moved": 0, "prepare_s": 0.0, "pause_ms": 0.0}
    told = replace(scale(4, 2), actual=figures, prediction=prediction)
    text = "\n".join(summary_lines(told))
    assert "moved with KV" in text and "2 requests" in text and "2KiB" in text
    assert "moved with KV" not in "\n".join(summary_lines(replace(told, actual={})))


def test_a_change_of_width_that_comes_again_is_the_same_case():
    acts = [act(scale()), act(scale(4, 2)), act(scale())]
    assert {name: len(group) for name, group in by_name(acts).items()} == {"2->4": 2, "4->2": 1}


def test_several_times_are_pooled_rates_by_time_and_gaps_by_the_worst():
    first = act(scale())
    second = replace(
        act(replace(scale(), accepted_at=30.0, phase_at={"done": 34.0}, actual={"ready_s": 4.0})),
        before=Window(20.0, 30.0),
        after=Window(34.0, 40.0),
    )
    # A token a second until 40, and none between 31 and 33.
    late = tuple(float(second) for second in range(20, 41) if second not in (31, 32))
    traces = [trace(), Trace(0, 1, 19.5, late, 41.0, "text")]
    row = row_of([first, second], traces, [], SIZES)
    assert row["times"] == 2 and (row["ready_s"], row["ready_s_max"]) == (3.0, 4.0)
    assert row["tokens_per_s_before"] == 21 / 20
    assert row["tokens_per_s_during"] == 6 / 6
    assert row["longest_gap_ms"] == 3000.0


def test_promised_pages_count_as_held():
    assert held_bytes([{"page_bytes": 16, "total": 10, "free": 4}]) == 96
