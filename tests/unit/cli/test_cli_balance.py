"""`moectl balance` and its bench: files in, a plan with its bound out, and no with a reason."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moectl.cli import expert_loads
from moectl.cli.bench import balance as bench
from moectl.cli.bench import balance_parts, balance_random
from moectl.cli.bench.frame import BenchOptions
from moectl.cli.main import build_app
from moectl.core.errors import MoectlError, RefusedError
from moectl.placement.copies import budgets
from moectl.placement.copies.layout import Layout

KEYS = [
    *("balancedness", "bound_ratio", "gap_closed", "vs_eplb_min", "transferred"),
    *("transferred_worst", "transferred_64", "plan_ms", "refine_ms", "replan_kept"),
]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three loads of a small model with a dense first layer."""
    rng = np.random.default_rng(4)
    base = rng.permuted(1e5 * np.arange(1, 65) ** -0.7 * np.ones((4, 1)), axis=1)
    found = []
    for name in ("one", "two", "three"):
        load = np.round(base * rng.lognormal(0, 0.4, base.shape))
        load[0] = 0
        found.append(tmp_path / f"{name}.json")
        found[-1].write_text(json.dumps({"logical_count": load.tolist()}))
    return found


def run(*arguments: object) -> dict:
    done = CliRunner().invoke(
        build_app(), [str(each) for each in (*arguments, "-o", "json")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_plan_is_written_and_moved_on_from(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    sizes = ["--slots", 96, "--devices", 16]
    plan = run("balance", files[0], files[1], *sizes, "--score-on", files[2], "--out", out)
    assert json.loads(out.read_text()) == plan
    assert [len(plan["layers"]), list(plan["scores_on"])] == [3, ["three"]]
    for layer in plan["layers"]:
        assert {e for device in layer["slots"] for e in device} == set(range(64))
        for split in layer["shares"]:
            assert sum(split["shares"]) == pytest.approx(1, abs=1e-4)
            assert all(split["expert"] in layer["slots"][d] for d in split["devices"])
    for row in plan["scores"].values():
        assert row["equal"] <= row["split"] + 1e-9 <= row["bound"] + 2e-9
    moved = run("balance", files[2], *sizes, "--current", out, "--move", "5%")
    assert 0 < sum(layer["moved"] for layer in moved["layers"]) <= 0.05 * 3 * 96
    assert moved["scores"]["three"]["split"] >= plan["scores_on"]["three"]["split"]


def test_the_table_says_what_holds_the_worst_layer_back(files: list[Path]) -> None:
    done = CliRunner().invoke(
        build_app(), ["balance", str(files[0]), "--slots", "72", "--devices", "24"]
    )
    assert done.exit_code == 0
    assert "more than the bound" in done.stdout
    assert "of it is expert" in done.stdout


def test_layers_get_slots_where_they_help_at_the_same_memory(files: list[Path]) -> None:
    even = run("balance", files[0], "--slots", 96, "--devices", 32)
    auto = run("balance", files[0], "--slots", "auto:96", "--devices", 32)
    count = [sum(len(device) for device in layer["slots"]) for layer in auto["layers"]]
    assert sum(count) <= 3 * 96
    assert auto["scores"]["one"]["split"] >= even["scores"]["one"]["split"] - 0.005


def test_budgets_go_to_the_layer_that_needs_them() -> None:
    """One layer with a single hot expert, and others that are even with any number of slots."""
    hot = np.ones((3, 16))
    hot[1, 0] = 40
    layout = Layout(32, 16)
    found = budgets.layer_budgets(hot, layout)
    assert sum(found) <= 6
    assert found[1] == max(found) > found[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"logical_count": [[1, NaN]]}', "layer 0 expert 1 has load nan"),
        ('{"logical_count": [[1, 2], [3]]}', "layers of different size"),
        ('{"logical_count": [[1, -2]]}', "has load -2.0"),
        ('{"logical_count": [[0, 0]]}', "all loads are zero"),
        ("{}", "has no logical_count"),
        ("nothing", "no JSON"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "load.json"
    path.write_text(text)
    with pytest.raises(RefusedError) as caught:
        expert_loads.moe_layers([path])
    assert says in caught.value.message
    assert str(path) in caught.value.message


def test_what_cannot_be_planned_is_refused(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("[[1, 2, 3]]")
    for arguments, says in (
        ([files[0], "--slots", "32"], "32 would have no copy"),
        ([files[0], "--slots", "many"], "not a number"),
        ([files[0], "--move", "lots"], "not a share"),
        ([files[0], "--shares", "odd"], "use split or equal"),
        ([files[0], other], "different shapes"),
        ([tmp_path / "gone.json"], "gone.json: missing"),
        ([files[0], "--slots", "64", "--current", files[1]], "no placement of copies"),
        ([files[0], "--slots", "96", "--out", tmp_path / "no/p.json"], "No such file or directory"),
    ):
        done = CliRunner().invoke(build_app(), ["balance", *map(str, arguments)])
        assert isinstance(done.exception, MoectlError)
        assert says in f"{done.exception.message} {done.exception.next_step}"


def test_a_plan_is_not_moved_on_from_with_another_number_of_devices(
    files: list[Path], tmp_path: Path
) -> None:
    """96 slots of a layer would also fit 16 and 32 devices, and mean other places."""
    out = tmp_path / "plan.json"
    run("balance", files[0], "--slots", 96, "--devices", 8, "--out", out)
    words = ["balance", str(files[2]), "--current", str(out)]
    done = CliRunner().invoke(build_app(), words)
    assert isinstance(done.exception, RefusedError)
    assert "made for 8 devices, --devices says 32" in done.exception.message
    assert CliRunner().invoke(build_app(), [*words, "--devices", "8"]).exit_code == 0


def test_a_bench_without_its_file_names_it(files: list[Path], tmp_path: Path) -> None:
    for options, says in (
        (BenchOptions(data=tmp_path), "decode_in1000out1000.json: missing"),
        (BenchOptions(files=(tmp_path / "no.json",)), "no.json: missing"),
        (BenchOptions(files=(files[0],), score_on=(tmp_path / "no.json",)), "no.json: missing"),
        (BenchOptions(files=(files[0],)), "leaving one out needs two"),
    ):
        with pytest.raises(RefusedError) as caught:
            bench.run(options)
        assert says in caught.value.message


def test_the_bench_has_every_key_for_any_model(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance_random, "LAYERS", 512 * 16)
    monkeypatch.setattr(balance_parts, "REPEATS", 2)
    result = bench.run(BenchOptions(files=tuple(files), quick=True))
    assert [key for key in KEYS if not result.summary[key] >= 0] == []
    assert result.summary["layers_worse"] == result.summary["baseline_differs"] == 0
    assert result.summary["vs_eplb_min"] >= 1
    assert result.summary["files"] == 3
    onto = bench.run(BenchOptions(files=tuple(files[:1]), score_on=(files[2],), quick=True))
    assert any(name.startswith("transferred 72/8 to three: ") for name in onto.results)
    bench.draw(result, tmp_path / "balance.png")
    assert (tmp_path / "balance.png").stat().st_size > 10_000
