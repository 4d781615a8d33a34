"""`moectl plan` offline: answers, and refusals that name the limit and the nearest change."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moectl.cli import main as cli_main
from moectl.cli.planning import declared_fleet
from moectl.core.errors import CheckpointError, RefusedError, UnplaceableError, UsageError

RUNNER = CliRunner()
SMALL = ["plan", "-m", "qwen3-30b-a3b", "--fleet", "8xh100"]


def run(*words: str) -> str:
    result = RUNNER.invoke(cli_main.build_app(), list(words), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def plan(*words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*SMALL, *words, "-o", "json"))
    return answer


def test_a_plan_says_what_it_uses_and_why_not_more() -> None:
    answer = plan("--slo", "ttft=2s,tpot=50ms")
    assert answer["devices_used"] == 8 and answer["requests_per_s"] > 0
    assert answer["requests_per_s"] <= answer["bound_requests_per_s"] * (1 + 1e-9)
    for block in answer["blocks"]:
        assert block["tpot_s"] <= 0.05
        assert sum(block["memory_gb"].values()) < 80 and "cache" in block["memory_gb"]


def test_our_own_engine_gets_only_layouts_that_it_executes() -> None:
    for block in plan("--engine", "moectl")["blocks"]:
        assert "moectl" in block["engines"]
        assert (block["tp"], block["pp"], block["cp"], block["ep"]) == (1, 1, 1, block["dp"])


def test_the_front_trades_speed_of_a_user_for_yield_of_a_device() -> None:
    front = plan()["pareto"]
    users = [point["tokens_per_s_user"] for point in front]
    yields = [point["tokens_per_s_device"] for point in front]
    assert users == sorted(users, reverse=True) and yields == sorted(yields)


def test_the_front_over_two_kinds_of_devices_has_no_offer_that_another_beats() -> None:
    words = ["plan", "-m", "qwen3-30b-a3b", "--fleet", "8xh100,8xb200", "-o", "json"]
    front = json.loads(run(*words))["pareto"]
    keys = ("tokens_per_s_user", "tokens_per_s_device", "price_per_million_tokens")
    points = [tuple(point[key] for key in keys) for point in front]
    assert len(points) > 2 and {point["device"] for point in front} >= {"b200"}
    for user, device, price in points:
        better = [p for p in points if p[0] >= user and p[1] >= device and p[2] <= price]
        assert better == [(user, device, price)]


def test_a_rate_is_met_with_the_fewest_nodes() -> None:
    few = json.loads(run(*SMALL[:-1], "64xh100", "--rate", "5", "-o", "json"))
    assert few["requests_per_s"] >= 5 and few["devices_used"] == 8


def test_a_model_that_does_not_fit_names_the_bytes_and_the_devices_it_needs() -> None:
    with pytest.raises(UnplaceableError, match="80 GB") as refusal:
        run("plan", "-m", "deepseek-v3", "--precision", "fp8", "--fleet", "8xh100")
    assert "8 more devices" in refusal.value.next_step and refusal.value.exit_code == 4


def test_a_limit_that_no_layout_keeps_names_the_nearest_one() -> None:
    with pytest.raises(UnplaceableError) as refusal:
        run(*SMALL, "--slo", "tpot=0.1ms")
    assert "--tpot" in refusal.value.next_step


@pytest.mark.parametrize(
    "words",
    [
        ["--fleet", "h100"],
        ["--slo", "tbt=5ms"],
        ["--precision", "fp3"],
        ["--engine", "other"],
        ["--lengths", "many"],
        ["-o", "xml"],
        ["--emit", "compose"],
    ],
)
def test_wrong_words_are_named(words: list[str]) -> None:
    with pytest.raises(UsageError):
        run(*SMALL, *words)


def test_unknown_models_and_devices_name_the_known_ones() -> None:
    with pytest.raises(CheckpointError) as refusal:
        run("plan", "-m", "nobody", "--fleet", "8xh100")
    assert "deepseek-v3" in refusal.value.next_step
    with pytest.raises(RefusedError) as other:
        run("plan", "-m", "qwen3-32b", "--fleet", "8xh999")
    assert "h200" in other.value.next_step


def test_manifests_are_yaml_without_anchors() -> None:
    yaml = pytest.importorskip("yaml")
    text = run(*SMALL, "--engine", "sglang", "--emit", "kubernetes")
    objects = list(yaml.safe_load_all(text))
    assert {item["kind"] for item in objects} >= {"Deployment", "Service"}
    assert "&id" not in text


@pytest.mark.parametrize("name", ["no/x.svg", "no/x.png"])
def test_a_drawing_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RefusedError, match=f"{name}: No such file or directory"):
        run(*SMALL, "--draw", str(tmp_path / name))


def test_the_drawing_is_written(tmp_path: Path) -> None:
    run(*SMALL, "--draw", str(tmp_path / "layout.svg"))
    assert (tmp_path / "layout.svg").read_text(encoding="utf-8").startswith("<svg")


def test_facts_need_no_weights() -> None:
    facts = json.loads(run("model", "facts", "deepseek-v3", "-o", "json"))
    assert round(facts["total_parameters"] / 1e9, 1) == 671.0
    assert sum(facts["parameters"].values()) == facts["total_parameters"]


FLEET = """
apiVersion: moectl.dev/v1
kind: Cluster
metadata: {name: c}
spec:
  nodes:
    - name: a
      devices: [DEVICE_A, DEVICE_A2]
    - name: b
      devices: [DEVICE_B]
---
apiVersion: moectl.dev/v1
kind: Model
metadata: {name: m}
spec:
  source: {path: MODEL}
  parallelism: {experts: 1}
  workload: {inputTokens: 512, outputTokens: 64}
"""


def spec(tmp_path: Path, a: str, b: str) -> str:
    """A file with three cuda devices on two nodes, `a` and `b` being their `hardware`."""
    text = FLEET.replace("MODEL", str(Path(__file__).parents[3] / "clusters/models/demo"))
    for name, id_, hardware in (
        ("DEVICE_A2", "d1", a),
        ("DEVICE_A", "d0", a),
        ("DEVICE_B", "d0", b),
    ):
        device = f"{{id: {id_}, kind: cuda, hbm: 80GiB, hardware: {hardware}}}"
        text = text.replace(name, device)
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    return str(file)


def test_a_spec_brings_its_heterogeneous_fleet_and_its_workload(tmp_path: Path) -> None:
    file = spec(tmp_path, "{sheet: h100}", "{sheet: h200}")
    answer = json.loads(run("plan", "-f", file, "-o", "json"))
    assert {block["device"] for block in answer["blocks"]} == {"h100", "h200"}
    assert answer["devices_used"] == 3
    assert (answer["workload"]["input_tokens"], answer["workload"]["output_tokens"]) == (512, 64)


@pytest.mark.parametrize(
    "change",
    [
        "bandwidthTBs: 0.1",
        "peakTflops: {bf16: 1}",
        "links: {node: {GBs: 0.01, latencyUs: 90000}}",
        "pricePerHour: 9",
    ],
)
def test_any_figure_of_a_sheet_can_be_replaced_in_a_spec(tmp_path: Path, change: str) -> None:
    plain = declared_fleet(spec(tmp_path, "{sheet: h100}", "{sheet: h100}"))
    (first, *_) = declared_fleet(spec(tmp_path, f"{{sheet: h100, {change}}}", "{sheet: h100}"))
    assert first.hardware != plain[0].hardware
    assert first.hardware.name == "h100" and first.node_devices == 2
    assert first.hardware.hbm_bytes == 80 * 2**30


def test_a_slower_memory_serves_less(tmp_path: Path) -> None:
    fast, slow = (
        json.loads(run("plan", "-f", spec(tmp_path, each, each), "-o", "json"))
        for each in ("{sheet: h100}", "{sheet: h100, bandwidthTBs: 0.05}")
    )
    assert slow["requests_per_s"] < fast["requests_per_s"]


@pytest.mark.parametrize("option", ["--draw", "--emit", "--slo", "--engine"])
def test_options_beside_a_file_are_heeded_also_when_its_model_says_auto(
    tmp_path: Path, option: str
) -> None:
    file = Path(spec(tmp_path, "{sheet: h100}", "{sheet: h100}"))
    file.write_text(file.read_text().replace("{experts: 1}", "auto"))
    drawn = tmp_path / "x.svg"
    words = {"--draw": str(drawn), "--emit": "vllm", "--slo": "tpot=40ms", "--engine": "vllm"}
    told = run("plan", "-f", str(file), option, words[option])
    assert ("vllm serve" in told, "requests/s" in told) == (option == "--emit", option != "--emit")
    assert drawn.exists() == (option == "--draw")
    assert "nothing is running yet" in run("plan", "-f", str(file))


def test_a_sheet_of_your_own_may_build_on_a_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{sheet: h100, name: mine, hbm: 60GB, links: {rack: {devices: 16}}}")
    answer = json.loads(run("plan", "-m", "qwen3-30b-a3b", "--fleet", f"8x{file}", "-o", "json"))
    assert {block["device"] for block in answer["blocks"]} == {"mine"}
    assert all(sum(block["memory_gb"].values()) < 60 for block in answer["blocks"])


def test_a_device_without_a_sheet_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="node a has a cuda device of no data sheet") as refusal:
        run("plan", "-f", spec(tmp_path, "null", "null"))
    assert "sheet: h100" in refusal.value.next_step


def test_a_plan_says_which_engine_cannot_run_it_and_why() -> None:
    (block, *_) = plan("--engine", "vllm")["blocks"]
    assert set(block["engines"]) | set(block["not_on"]) == {"moectl", "vllm", "sglang"}
    assert "vllm" in block["engines"] and all(block["not_on"].values())
