"""A study lives in its folder: what was finished stays, what was running is measured again."""

import dataclasses
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from moectl.cli.tune import study as studies
from moectl.cli.tune.measure import Measured
from moectl.cli.tune.space import build_space
from moectl.cli.tune.study import TuneStudy, check_identity, own_folder
from moectl.core.errors import ConflictError, RefusedError
from moectl.core.spec import model_spec_from_plain, to_plain

SPEC = to_plain(model_spec_from_plain({"source": {"path": "m"}, "parallelism": {"experts": 1}}))
RUN = Measured(1.0, 1000, 0.1, 0.2, 0.1, 0.01, 0.02, 0.01, 4.0, 100, 0)
SMALL = [
    "prefillChunk=32,64", "maxBatchTokens=64,128", "kvBlockTokens=16", "maxRequests=64",
    "prefixCache=true", "threads=1",
]  # fmt: skip


def opened(folder: Path, asked: list[str] | None = None) -> TuneStudy:
    return TuneStudy(folder, build_space(SPEC, asked or [], 2), seed=5)


def finish(study: TuneStudy, tokens: int = 1000) -> dict:
    asked = study.ask()
    assert asked is not None
    attempt, settings = asked
    attempt.give_up(1, float(tokens))
    attempt.complete(dataclasses.replace(RUN, tokens=tokens), 0.0)
    return settings


def test_the_present_settings_are_the_first_trial(tmp_path: Path) -> None:
    study = opened(tmp_path)
    assert finish(study) == study._space.present


def test_a_reopened_study_keeps_its_trials_and_measures_none_twice(tmp_path: Path) -> None:
    seen = []
    for opening in range(4):
        study = opened(tmp_path)
        assert [each.settings for each in study.tried()] == seen
        seen += [finish(study, 1000 + opening) for _ in range(4)]
    assert len({tuple(each.items()) for each in seen}) == len(seen) == 16
    assert [each.measured.tokens for each in opened(tmp_path).tried()][::4] == [
        1000,
        1001,
        1002,
        1003,
    ]


def test_a_trial_that_was_running_when_the_process_died_is_measured_next(tmp_path: Path) -> None:
    study = opened(tmp_path)
    finish(study)
    attempt, left = study.ask()
    attempt.give_up(1, 5.0)
    del study
    again = opened(tmp_path)
    assert again.resumed == 1
    assert finish(again) == left
    assert opened(tmp_path).resumed == 0


def test_a_death_between_queueing_and_closing_still_measures_once(tmp_path: Path) -> None:
    study = opened(tmp_path)
    finish(study)
    _, left = study.ask()
    study._study.enqueue_trial(study._space.indexes(left))  # queued, and then the process died
    again = opened(tmp_path)
    found = [finish(again) for _ in range(4)]
    assert found.count(left) == 1


def test_a_space_that_was_measured_whole_ends_the_search(tmp_path: Path) -> None:
    study = opened(tmp_path, SMALL)
    found = [finish(study) for _ in range(4)]
    assert len({tuple(each.items()) for each in found}) == 4
    assert study.ask() is None


def test_settings_that_go_worse_than_most_are_given_up(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for number in range(studies.STARTUP_PRUNE + 1):
        finish(study, 1000 + number)
    attempt, _ = study.ask()
    assert attempt.give_up(1, 10.0)
    attempt.end("pruned", "slow")
    assert study.tried()[-1].outcome == "pruned"
    attempt, _ = study.ask()
    assert not attempt.give_up(1, 5000.0)


HOLDER = """
import sys, pathlib
from moectl.cli.tune.study import own_folder
with own_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_works_on_a_study_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(ConflictError, match="another process"), own_folder(folder):
        pass
    holder.kill()
    holder.communicate()
    with own_folder(folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_trials_of_another_workload_are_never_mixed_in(tmp_path: Path) -> None:
    check_identity(tmp_path, {"workload": "a", "seed": 1})
    check_identity(tmp_path, {"workload": "a", "seed": 1})
    with pytest.raises(RefusedError, match="another workload"):
        check_identity(tmp_path, {"workload": "b", "seed": 1})
    studies.forget(tmp_path)
    check_identity(tmp_path, {"workload": "b", "seed": 1})
    assert json.loads((tmp_path / "study.json").read_text())["workload"] == "b"


def test_the_study_is_one_private_database(tmp_path: Path) -> None:
    finish(opened(tmp_path))
    database = tmp_path / "study.db"
    assert database.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from trials").fetchone()[0] >= 1
    connection.close()
