"""`moectl trace` and `moectl bench cache` from the command line, on small files and real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from moectl.cli.bench.frame import data_folder, require_files
from moectl.cli.main import build_app
from moectl.core.curves import HitRateCurve
from moectl.core.errors import RefusedError, UsageError
from moectl.core.records import from_json


def _moectl(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


@pytest.fixture
def routes(tmp_path: Path) -> Path:
    random = np.random.default_rng(2)
    experts = np.argsort(random.random((80, 4, 8)), axis=2)[:, :, :2]
    ids = random.integers(0, 30, 80)
    path = tmp_path / "routes.npz"
    np.savez(path, experts=experts, requests=np.repeat(np.arange(4), 20), token_ids=ids)
    return path


def test_import_tells_what_was_kept_and_the_trace_validates(routes: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.npz"
    done = _moectl("trace", "import", str(routes), "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "320 read, 320 kept, 0 dropped" in done.stderr
    assert "80 tokens, 4 layers, 2 of 8 experts, 4 requests" in done.stdout
    assert "sound: 80 tokens" in _moectl("trace", "validate", str(out)).stdout
    stats = json.loads(_moectl("trace", "stats", str(out), "-o", "json").stdout)
    assert (stats["tokens"], stats["requests"], stats["token_ids"]) == (80, 4, True)


def test_an_unsound_trace_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", experts=np.full((4, 2, 2), 3))
    done = _moectl("trace", "validate", str(tmp_path / "a.npz"))
    assert isinstance(done.exception, RefusedError)
    assert "one expert twice" in str(done.exception)


def test_replay_prints_every_policy_and_writes_the_curve(routes: Path, tmp_path: Path) -> None:
    curve, plot = tmp_path / "curve.json", tmp_path / "curve.png"
    done = _moectl(
        "trace",
        "replay",
        str(routes),
        "--policy",
        "trajectory,lru,min",
        "--slots",
        "8,16",
        "--curve",
        str(curve),
        "--plot",
        str(plot),
        "-o",
        "json",
    )
    assert done.exit_code == 0, done.output
    runs = json.loads(done.stdout)
    assert [(run["slots"], run["policy"]) for run in runs] == [
        (slots, name) for slots in (8, 16) for name in ("trajectory", "lru", "min")
    ]
    read = from_json(HitRateCurve, curve.read_text(encoding="utf-8"))
    assert (read.policy, [point.slots for point in read.points]) == ("trajectory", [8, 16])
    assert read.points[0].hit_rate == pytest.approx(runs[0]["hit_rate"])
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_replay_refuses_unknown_policies_and_slots(routes: Path) -> None:
    for extra in (["--policy", "magic"], ["--slots", "few"], ["-o", "xml"]):
        done = _moectl("trace", "replay", str(routes), *extra)
        assert isinstance(done.exception, UsageError), extra


def test_train_writes_a_predictor_and_judges_it_on_held_out_requests(
    routes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "paths.safetensors"
    done = _moectl("trace", "train", str(routes), "--out", str(out), "--steps", "2")
    assert done.exit_code == 0, done.output
    assert out.stat().st_size > 1_000_000
    assert "held-out requests: recall@k" in done.stdout


def test_a_bench_without_data_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _moectl("bench", "cache", "--data", str(tmp_path / "no"))
    assert isinstance(done.exception, RefusedError)
    assert str(tmp_path / "no") in str(done.exception)
    assert done.stdout == ""
    with pytest.raises(RefusedError, match=r"humaneval_2\.jsonl\.gz: missing"):
        require_files(tmp_path, ["traces/mixtral-8x7b/humaneval_2.jsonl.gz"])
    monkeypatch.setenv("MOECTL_DATA", str(tmp_path))
    assert data_folder() == tmp_path


def test_an_unknown_bench_names_the_known_ones() -> None:
    done = _moectl("bench", "nothing")
    assert isinstance(done.exception, UsageError)
    assert "cache" in str(done.exception)


def test_the_bench_gives_every_key_on_a_file_of_ones_own(routes: Path) -> None:
    done = _moectl("bench", "cache", str(routes), "-o", "json", "--budget", "1s")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found) >= {"bench", "commit", "device", "seed", "command", "results", "summary"}
    assert set(found["summary"]) >= {
        "gap_captured_96",
        "gap_captured_128",
        "gap_captured_192",
        "hit_over_min",
        "decide_us",
        "recall2",
        "recall3",
    }
    assert any("left out" in note for note in found["notes"])
