"""Where specs are found, and how their paths reach the API."""

from pathlib import Path

import pytest

from moectl.cli import specs
from moectl.core.errors import RefusedError, SpecError, UsageError

MODEL = """
apiVersion: moectl.dev/v1
kind: Model
metadata: {name: chat}
spec:
  source: {path: models/mine}
  parallelism: {experts: 2}
"""


def test_shipped_specs_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clusters/local.yaml", "local.yaml", "clusters/local-8.yaml"):
        assert specs.find_spec(name) == specs.clusters_dir() / Path(name).name


def test_a_file_of_the_person_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.yaml").write_text(MODEL)
    assert specs.find_spec("local.yaml") == (tmp_path / "local.yaml").resolve()


def test_a_missing_spec_is_refused_naming_the_shipped_ones() -> None:
    with pytest.raises(RefusedError) as caught:
        specs.find_spec("nowhere/at-all.yaml")
    assert "local-8.yaml" in caught.value.next_step


def test_relative_sources_are_made_absolute_against_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(MODEL)
    documents = specs.read_documents(str(file))
    (request,) = specs.to_request(documents, specs.folder_of(str(file)))
    assert request["spec"]["source"]["path"] == str(tmp_path / "models" / "mine")
    assert (request["kind"], request["name"]) == ("Model", "chat")


def test_all_mistakes_of_a_file_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(MODEL.replace("experts: 2", "exprts: 0") + "  oops: 1\n")
    with pytest.raises(SpecError) as caught:
        specs.read_documents(str(file))
    assert len(caught.value.mistakes) >= 2
    assert caught.value.exit_code == 3


def test_up_needs_exactly_one_cluster(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(MODEL)
    with pytest.raises(UsageError, match="declares 0 clusters"):
        specs.only_cluster(specs.read_documents(str(file)), str(file))


def test_the_shipped_specs_are_correct() -> None:
    for name, devices in (("local.yaml", 4), ("local-8.yaml", 8)):
        documents = specs.read_documents(name)
        assert specs.only_cluster(documents, name).spec.device_count == devices
