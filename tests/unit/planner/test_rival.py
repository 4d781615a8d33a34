"""The other planner beside ours: rows it refuses are counted by reason, never by guess."""

import sys
import types
from collections.abc import Iterator

import pytest

from moectl.cli import catalogue
from moectl.cli.bench import plan_rival
from moectl.placement.rows import Row, read_rows

RECORD = {
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


@pytest.fixture
def rows() -> list[Row]:
    records = [RECORD, {**RECORD, "batch_size": "32"}, {**RECORD, "batch_size": "64"}]
    return read_rows(records, catalogue.all_shapes(), catalogue.devices())[0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """A package of that name which answers twice, by its own words for a row."""
    words: list[dict[str, object]] = []

    def cli_estimate(model: str, system: str, **said: object) -> types.SimpleNamespace:
        words.append({"model": model, "system": system, **said})
        if said["batch_size"] == 64:
            raise RuntimeError("OOM: the model 'x' does not fit")
        return types.SimpleNamespace(tpot=7.0, ttft=100.0)

    api = types.ModuleType("aiconfigurator.cli.api")
    base = types.ModuleType("aiconfigurator_core.sdk.perf_database")
    monkeypatch.setattr(api, "cli_estimate", cli_estimate, raising=False)
    monkeypatch.setattr(base, "get_latest_database_version", lambda *_: "1", raising=False)
    for name in ("aiconfigurator", "aiconfigurator.cli", "aiconfigurator_core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", types.ModuleType("sdk"))
    monkeypatch.setitem(sys.modules, api.__name__, api)
    monkeypatch.setitem(sys.modules, base.__name__, base)
    yield words


def test_answers_are_kept_by_line_and_refusals_by_reason(
    rows: list[Row], asked: list[dict[str, object]]
) -> None:
    found, refused = plan_rival.answers(rows, lambda *_: None, lambda: 1.0)
    assert found == {2: (0.007, 0.1), 3: (0.007, 0.1)}
    assert dict(refused) == {"RuntimeError: OOM: the model": 1}
    assert asked[0]["system"] == "h200_sxm" and asked[0]["moe_tp_size"] == 8


@pytest.mark.parametrize("device", ["h100", "h200", "b200", "b300", "gb200"])
def test_devices_have_the_names_that_its_own_help_lists(device: str) -> None:
    name = plan_rival.SYSTEMS.get(device, device)
    assert name == (device if device == "gb200" else f"{device}_sxm")


def test_rows_without_time_are_counted(rows: list[Row], asked: list[dict[str, object]]) -> None:
    found, refused = plan_rival.answers(rows, lambda *_: None, lambda: 0.0)
    assert not found and not asked and dict(refused) == {"no time left": 3}
