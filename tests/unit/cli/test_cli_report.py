"""The demo's JSON: exactly the promised keys, and numbers that follow from the evidence."""

import json
from typing import Any

from moectl.cli.demo.metrics import Trace, Window
from moectl.cli.demo.report import (
    Evidence,
    KillRun,
    ScaleRun,
    Setting,
    build_report,
    is_good,
    summary_lines,
    to_text,
)
from moectl.cli.demo.residency import Sample, expert_bytes, peak_ratio
from moectl.cli.tui.sample import sample_fleet

SETTING = Setting(commit="abc", device="cpu x2", seed=7, command="moectl demo", cores=2)
SCALE_KEYS = {
    "from", "to", "ready_s", "longest_gap_ms", "steady_p99_itl_ms", "replay_gap_ms", "bytes_moved",
    "bytes_lower_bound", "peak_bytes_ratio", "steps_cross_node",
}  # fmt: skip


def evidence(**changes: Any) -> Evidence:
    transition = sample_fleet(4).transitions[-1]
    begin = transition.accepted_at
    window = Window(begin, begin + 2.4)
    arrivals = tuple(begin - 2 + 0.01 * i for i in range(700))
    fields: dict[str, Any] = {
        "reference": {(0, 0): "text", (1, 0): "other"},
        "traces": [
            Trace(0, 0, begin - 2, arrivals, arrivals[-1], "text", moves=1),
            Trace(1, 0, begin - 2, (begin, begin + 1.5), begin + 3, "other", replays=1),
        ],
        "sent": 2,
        "samples": [Sample(begin - 1, 100), Sample(begin + 1, 150), Sample(begin + 3, 100)],
        "scales": [
            ScaleRun(transition, window, Window(begin - 2, begin), Window(begin + 2.4, begin + 5))
        ],
        "kill": KillRun("n1/d1", 1234, begin + 3.0, begin + 4.25),
        "startup_s": 6.5,
        "total_s": 80.0,
    }
    return Evidence(**{**fields, **changes})


def test_report_has_the_promised_keys() -> None:
    report = build_report(evidence(), SETTING)
    assert set(report["requests"]) == {
        "sent",
        "ok",
        "failed",
        "moved",
        "replayed",
        "token_mismatches",
    }
    assert set(report["scales"][0]) == SCALE_KEYS
    assert {"recovered_s", "failed"} <= set(report["worker_kill"])
    assert {
        "startup_s",
        "cores",
        "leaked_processes",
        "bench",
        "commit",
        "device",
        "seed",
        "command",
    } <= set(report)
    assert json.loads(to_text(report)) == report


def test_figures_follow_from_the_evidence() -> None:
    report = build_report(evidence(), SETTING)
    scale = report["scales"][0]
    assert (scale["from"], scale["to"]) == (2, 4)
    assert scale["longest_gap_ms"] == scale["steady_p99_itl_ms"] == 10.0
    assert scale["replay_gap_ms"] == 1500.0
    assert scale["ready_s"] == 2.0
    assert scale["bytes_moved"] == scale["bytes_lower_bound"] == 4718592
    assert scale["peak_bytes_ratio"] == 1.5
    assert report["worker_kill"]["recovered_s"] == 1.25
    assert report["requests"] == {
        "sent": 2,
        "ok": 2,
        "failed": 0,
        "moved": 1,
        "replayed": 1,
        "token_mismatches": 0,
    }
    assert is_good(report)


def test_a_request_that_never_ended_has_failed() -> None:
    report = build_report(evidence(sent=3), SETTING)
    assert report["requests"]["failed"] == 1
    assert not is_good(report)


def test_other_text_leftovers_or_no_recovery_are_no_success() -> None:
    assert not is_good(build_report(evidence(reference={}), SETTING))
    assert not is_good(build_report(evidence(leaked=1), SETTING))
    assert not is_good(build_report(evidence(kill=None), SETTING))


def test_the_summary_is_made_of_the_same_numbers() -> None:
    text = "\n".join(summary_lines(build_report(evidence(), SETTING)))
    for piece in ("2 -> 4", "2.00 s", "10 ms", "1500 ms", "4.5MiB", "1.50x", "after 1.25 s"):
        assert piece in text


def test_a_failed_run_can_still_be_told() -> None:
    text = "\n".join(summary_lines(build_report(Evidence(), SETTING)))
    assert "whole again never" in text


def test_peak_is_over_the_larger_of_both_layouts() -> None:
    samples = [Sample(0, 100), Sample(5, 260), Sample(9, 200)]
    assert peak_ratio(samples, Window(4, 6)) == 1.3
    assert peak_ratio(samples[:1], Window(4, 6)) == 1.0
    assert peak_ratio([], Window(4, 6)) == 0.0


def test_expert_bytes_are_those_of_the_owner_alone() -> None:
    usage = [
        {"device": "d0", "page_bytes": 16, "used": {"chat/experts": 3, "chat/kv": 9}},
        {"device": "d1", "page_bytes": 16, "used": {"other/experts": 3}},
    ]
    assert expert_bytes(usage, "chat/experts") == 48
