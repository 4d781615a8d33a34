"""Measured rows: labels put right, rules that name what they leave out, scores that mean it."""

from typing import Any

import numpy as np

from moectl.cli import catalogue
from moectl.placement.constants import Constants, default_constants
from moectl.placement.fit import Evidence, fit
from moectl.placement.refine import TPOT_SCALES, choose, refine
from moectl.placement.rows import Row, believe, read_rows
from moectl.placement.scores import spearman
from moectl.placement.weigh import columns, token_seconds

SHAPES, DEVICES = catalogue.all_shapes(), catalogue.devices()
BASE = {
    "model_path": "openai/gpt-oss-120b",
    "system": "h200",
    "backend": "vllm",
    "backend_version": "0.18.0",
    "precision": "fp4",
    "isl": "1024",
    "osl": "1024",
    "gemm_quant_mode": "nvfp4",
    "batch_size": "16",
    "tp_size": "8",
    "pp_size": "1",
    "attention_dp_size": "1",
    "moe_tp_size": "8",
    "moe_ep_size": "1",
    "measured_ttft_ms": "120",
    "measured_tpot_ms": "6",
}


def rows(*changes: dict[str, str]) -> list[Row]:
    found, _ = read_rows([{**BASE, **change} for change in changes], SHAPES, DEVICES)
    return found


def rules(*changes: dict[str, str]) -> dict[int, tuple[str, str]]:
    _, left = believe(rows(*changes))
    return {item.line: (item.rule, item.what) for item in left}


def test_devices_counted_twice_are_counted_once() -> None:
    (row,) = rows({"tp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"})
    assert (row.layout.tp, row.layout.ep, row.layout.devices, row.batch) == (8, 8, 8, 16)
    assert row.is_relabelled


def test_replicas_counted_twice_give_their_batch_back() -> None:
    (row,) = rows(
        {"tp_size": "1", "attention_dp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"}
    )
    assert (row.layout.dp, row.layout.ep, row.layout.devices, row.batch) == (8, 8, 8, 128)


def test_an_unknown_model_is_left_out_by_name() -> None:
    _, left = read_rows([{**BASE, "model_path": "who/knows"}], SHAPES, DEVICES)
    assert [(item.line, item.rule) for item in left] == [(2, "unknown_model")]


def test_a_row_that_stands_twice_counts_once() -> None:
    assert rules({}, {}) == {3: ("duplicate", "all")}


def test_a_row_faster_than_memory_is_left_out() -> None:
    assert rules({"measured_tpot_ms": "0.05"}) == {2: ("faster_than_memory", "all")}


def test_a_row_that_waited_is_left_out() -> None:
    assert rules({"measured_ttft_ms": "90000"}) == {2: ("queued", "all")}


def test_undeclared_speculation_shows_in_twins_of_models_with_a_draft_head() -> None:
    model = {"model_path": "deepseek-ai/DeepSeek-R1", "precision": "fp8", "gemm_quant_mode": "fp8"}
    slow = {**model, "backend_version": "a", "measured_tpot_ms": "14"}
    fast = {**model, "backend_version": "b", "measured_tpot_ms": "8"}
    assert rules(slow, fast) == {3: ("speculative", "all")}


def test_first_tokens_that_fall_with_the_batch_keep_their_tpot() -> None:
    found = rules({"batch_size": "4", "measured_ttft_ms": "600"}, {"batch_size": "8"})
    assert found == {2: ("falls_with_batch", "ttft")}


def _evidence(constants: Constants, found: list[Row]) -> Evidence:
    table = columns([row.point for row in found])
    tpot, ttft = token_seconds(constants, table)
    ones = np.ones(len(found))
    return Evidence(table, tpot, ttft, ones, ones)


def _grid() -> list[Row]:
    changes: list[dict[str, Any]] = [
        {"system": system, "batch_size": str(batch), "tp_size": str(tp), "moe_tp_size": str(tp)}
        for system in ("h200", "b200")
        for batch in (4, 16, 64)
        for tp in (1, 2, 8)
    ]
    return rows(*changes)


def test_a_fit_finds_the_constants_that_made_the_rows() -> None:
    truth = dict(default_constants().values)
    truth["expert_read"] *= 1.3
    truth["launch_s"] *= 1.5
    evidence = _evidence(Constants(truth), _grid())
    fitted = fit(evidence)
    tpot, ttft = token_seconds(fitted, evidence.table)
    assert float(np.mean(np.abs(tpot / evidence.tpot - 1))) < 0.03
    assert float(np.mean(np.abs(ttft / evidence.ttft - 1))) < 0.05


def test_predictions_fall_with_width_and_rise_with_batch() -> None:
    found = rows(*({"batch_size": str(b)} for b in (4, 16, 64, 256)))
    table = columns([row.point for row in found])
    tpot, ttft = token_seconds(default_constants(), table)
    assert list(tpot) == sorted(tpot) and list(ttft) == sorted(ttft)


def test_rows_to_measure_are_chosen_without_looking_at_results() -> None:
    features = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0], [0.1, 0.1]])
    assert set(choose(features, 3)) >= {2}
    assert len(set(choose(features, 9))) == 4


def test_a_constant_error_is_learned_from_few_rows() -> None:
    features = np.arange(12.0).reshape(12, 1) / 4
    predicted = np.zeros(12)
    refined = refine(features, predicted, {0: 1.4, 5: 1.4, 11: 1.4}, TPOT_SCALES)
    assert float(np.abs(np.exp(refined) / 1.4 - 1).max()) < 0.05


def test_rank_correlation_is_one_for_the_same_order_and_minus_one_for_the_reverse() -> None:
    values = np.array([1.0, 3.0, 2.0, 9.0])
    assert spearman(values, np.exp(values)) == 1.0
    assert spearman(values, -values) == -1.0
