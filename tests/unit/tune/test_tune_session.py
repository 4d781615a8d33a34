"""A run of `moectl tune` from search to verdict: what lies in the study's folder afterwards."""

import json
from pathlib import Path

import pytest

from moectl.cli.progress import open_progress
from moectl.cli.tune import asking, session
from moectl.cli.tune import patch as patches
from moectl.cli.tune.measure import Measured
from moectl.cli.tune.objective import Limits
from moectl.cli.tune.session import Plan, Subject
from moectl.cli.tune.space import build_space
from moectl.cli.tune.workload import Ask
from moectl.core.errors import RefusedError
from moectl.core.spec import API_VERSION, model_spec_from_plain, to_plain

SPEC = to_plain(model_spec_from_plain({"source": {"path": "m"}, "parallelism": {"experts": 1}}))
RAW = {
    "apiVersion": API_VERSION,
    "kind": "Model",
    "metadata": {"name": "chat"},
    "spec": SPEC,
}
SMALL = [
    "prefillChunk=32,64", "maxBatchTokens=64", "kvBlockTokens=16", "maxRequests=64",
    "prefixCache=true", "threads=1",
]  # fmt: skip


class Engine:
    """Serves everything in the same time, or the present settings `slower` times as slowly."""

    def __init__(self, present: dict, slower: float) -> None:
        self._present, self._slower = present, slower

    def run(self, spec, settings, asks, on_mark=None) -> Measured:
        seconds = self._slower if settings == self._present else 1.0
        return Measured(seconds, 1000, 0.1, 0.2, 0.1, 0.01, 0.02, 0.01, 4.0, 100, 0)


def run(home: Path, slower: float) -> dict:
    space = build_space(SPEC, SMALL, 2)
    plan = Plan(
        space, (Ask((1, 2), 3),), Limits(None, None), 2, 2, 8, 5, 600.0, home,
        home / "chat-tuned.yaml",
    )  # fmt: skip
    with open_progress() as progress:
        engine = Engine(dict(space.present), slower)
        return session.run(Subject("chat", RAW, SPEC, home), plan, engine, progress)


def test_a_run_that_finds_nothing_better_leaves_no_patch_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "recalibrate", lambda *_: {})
    patch = tmp_path / "chat-tuned.yaml"
    won = run(tmp_path, slower=2.0)
    assert won["verdict"]["beats"] and won["patch"] == str(patch) and patch.is_file()
    lost = run(tmp_path, slower=1.0)
    assert not lost["verdict"]["beats"] and lost["patch"] is None
    assert json.loads((tmp_path / "result.json").read_text())["patch"] is None
    assert not patch.exists()


def test_a_patch_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Path) -> None:
        raise AssertionError("the engine was loaded")

    monkeypatch.setattr(asking, "LiveEngine", load)
    (tmp_path / "file").write_text("")
    spec = str(Path(__file__).parents[3] / "clusters/local.yaml")
    for out, says in (("file/x.yaml", "is no folder"), (".", "that is a folder")):
        wish = asking.Wish(
            "chat", spec, 2, (), (), "", tmp_path / "study", True, 7, "1m", tmp_path / out
        )
        with pytest.raises(RefusedError, match=says):
            asking.carry_out(wish)
    assert not (tmp_path / "study").exists()  # also --new forgets nothing


def test_a_folder_that_is_made_on_the_way_is_a_good_place_for_a_patch(tmp_path: Path) -> None:
    patches.check_place(tmp_path / "a/b/x.yaml")
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match=r"Not a directory|File exists"):
        patches.write_patch(tmp_path / "file/x.yaml", {**RAW}, ["evidence"])
