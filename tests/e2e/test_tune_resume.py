"""`moectl tune` on the demo model: killed with -9 in the middle, then run again to its end."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from moectl.cli import specs
from moectl.cli.catalogue import constants, find_device
from moectl.cli.tune.patch import patched_document, write_patch
from moectl.cli.tune.steady import CELLS

TRIALS = 6
DEADLINE_S = 120.0


def command(folder: Path) -> list[str]:
    return [
        sys.executable, "-P", "-m", "moectl.cli.main", "tune", "chat", "-f", "clusters/local.yaml",
        "--trials", str(TRIALS), "--study", str(folder), "--set", "threads=1", "-o", "json",
        "--load", "requests=4", "--load", "input=8:40", "--load", "output=4:12",
    ]  # fmt: skip


def rows(folder: Path) -> dict[int, tuple[str, str]]:
    """Number -> (state, measured) of the trials on disk."""
    database = folder / "study.db"
    if not database.is_file():
        return {}
    query = (
        "select t.number, t.state, coalesce(a.value_json, '') from trials t left join "
        "trial_user_attributes a on a.trial_id = t.trial_id and a.key = 'measured'"
    )
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return {number: (state, value) for number, state, value in connection.execute(query)}
    except sqlite3.OperationalError:  # the tables are being made
        return {}


def finished(folder: Path) -> dict[int, str]:
    return {
        number: value
        for number, (state, value) in rows(folder).items()
        if state in ("COMPLETE", "PRUNED")
    }


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """(trials on disk after the kill, the result of the second run, the folder)."""
    folder = tmp_path_factory.mktemp("tune") / "study"
    environment = {**os.environ, "MOECTL_HOME": str(folder.parent / "home")}
    first = subprocess.Popen(
        command(folder), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + DEADLINE_S
    while len(finished(folder)) < 3 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(DEADLINE_S) == -signal.SIGKILL, "it ended before it could be killed"
    before = finished(folder)
    done = subprocess.run(
        command(folder), env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return before, json.loads(done.stdout), folder


def test_a_killed_study_ends_with_the_asked_trials_none_lost_and_none_run_twice(resumed) -> None:
    before, result, folder = resumed
    after = finished(folder)
    assert 3 <= len(before) < TRIALS
    assert {number: after[number] for number in before} == before
    assert len(after) == TRIALS == result["trials"]["finished"]
    assert {state for state, _ in rows(folder).values()} <= {"COMPLETE", "PRUNED", "FAIL"}
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        settings = connection.execute(
            "select group_concat(p.param_name || '=' || p.param_value) from trials t join "
            "trial_params p on p.trial_id = t.trial_id where t.state in ('COMPLETE', 'PRUNED') "
            "group by t.trial_id order by p.param_name"
        ).fetchall()
    assert len(set(settings)) == TRIALS


def test_the_result_says_honestly_whether_the_defaults_were_beaten(resumed) -> None:
    _, result, folder = resumed
    verdict = result["verdict"]
    assert verdict["pairs"] == 8 and 0 <= verdict["wins"] <= 8
    assert verdict["ratio"]["min"] <= verdict["ratio"]["median"] <= verdict["ratio"]["max"]
    assert (result["patch"] is not None) is verdict["beats"]
    if verdict["beats"]:
        assert verdict["wins"] >= verdict["wins_needed"] and verdict["ratio"]["median"] >= 1.02
    assert json.loads((folder / "result.json").read_text()) == result


def test_what_was_measured_re_calibrates_the_time_model_or_is_said_not_to(resumed) -> None:
    found = resumed[1]["calibration"]
    assert len(Path(found["rows"]).read_text().splitlines()) == 1 + len(CELLS)
    assert find_device(found["device"]).kind == "cpu"
    if found["before"] is None:
        assert found["constants"] is None and found["reason"]
    else:
        is_better = sum(found["after"].values()) < sum(found["before"].values())
        assert (found["constants"] is not None) is is_better
    if found["constants"]:
        assert constants(Path(found["constants"])).values["step_s"] > 0


def test_the_winners_patch_reads_back_as_the_spec_with_its_settings(resumed, tmp_path) -> None:
    _, result, _ = resumed
    if result["patch"] is not None:
        path = Path(result["patch"])
    else:  # nothing was beaten this time: write what would have been
        raw = next(d.raw for d in specs.read_documents("local.yaml") if d.kind == "Model")
        path = tmp_path / "patch.yaml"
        fields = {name: result["settings"][name] for name in result["changed"]}
        write_patch(
            path, patched_document(raw, str(specs.clusters_dir() / "models/demo"), fields), []
        )
    (document,) = specs.read_documents(str(path))
    engine = specs.to_request([document], path.parent)[0]["spec"]["engine"]
    assert {name: engine[name] for name in result["settings"]} == result["settings"]
