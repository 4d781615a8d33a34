"""The pure parts of the CLI's wider surface: files patched, contexts, owners, explanations."""

import io
import json
from pathlib import Path

import pytest

from moectl.cli import contexts
from moectl.cli.commands.diff import compare
from moectl.cli.commands.logs import log_files
from moectl.cli.descriptions import describe_lines
from moectl.cli.explaining import explanation
from moectl.cli.fleet_view import FleetView
from moectl.cli.render import Column, Listing, print_listing
from moectl.cli.staleness import last_known, remember, stale_text
from moectl.cli.yaml_patch import patch_width
from moectl.core.errors import NotFoundError, RefusedError, SpecError, UsageError
from moectl.core.paths import Home

YAML = """\
# What we serve.
apiVersion: moectl.dev/v1
kind: Model
metadata: {name: chat}   # its name
spec:
  source:
    path: "models/demo"  # quoted on purpose
  parallelism:

    experts: 2           # devices
  slo: {ttft: 80ms}
---
apiVersion: moectl.dev/v1
kind: Cluster
metadata:
  name: local
spec:
  nodes:
    - name: n1
      devices:
        - {id: d0, hbm: 96MiB}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(YAML)
    return path


@pytest.mark.parametrize(("wanted", "width"), [("4", 4), ("+3", 5), ("-1", 1)])
def test_one_number_of_a_file_changes_and_every_other_byte_stays(
    file: Path, wanted: str, width: int
) -> None:
    assert patch_width(file, "chat", wanted, dry_run=False) == (2, width)
    assert file.read_text() == YAML.replace("experts: 2 ", f"experts: {width} ")


def test_a_dry_run_of_a_patch_and_a_refused_one_leave_the_file_alone(file: Path) -> None:
    assert patch_width(file, "chat", "4", dry_run=True) == (2, 4)
    with pytest.raises(SpecError):
        patch_width(file, "chat", "-2", dry_run=False)
    with pytest.raises(NotFoundError):
        patch_width(file, "other", "4", dry_run=False)
    assert file.read_text() == YAML


def test_a_context_names_a_token_file_and_never_holds_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    monkeypatch.delenv(contexts.VARIABLE, raising=False)
    assert contexts.chosen(home) is None
    prod = contexts.Context("https://moe.example:8470", str(tmp_path / "token"))
    contexts.save(home, contexts.Contexts("prod", {"prod": prod}))
    assert contexts.chosen(home) == prod
    monkeypatch.setenv(contexts.VARIABLE, "local")
    assert contexts.chosen(home) is None
    monkeypatch.setenv(contexts.VARIABLE, "nope")
    with pytest.raises(UsageError, match="nope"):
        contexts.chosen(home)
    token = tmp_path / "token"
    token.write_text("moe_secret\n")
    token.chmod(0o644)
    with pytest.raises(RefusedError, match="others can read"):
        contexts.read_token_file(token)
    token.chmod(0o600)
    assert contexts.read_token_file(token) == "moe_secret"


def test_a_diff_names_each_leaf_and_its_owner() -> None:
    wanted = {"kind": "Model", "name": "chat", "spec": {"parallelism": {"experts": 4}}}
    declared = {
        "spec": {"parallelism": {"experts": 2}},
        "fields": {"parallelism.experts": {"owner": "gitops"}},
    }
    (only,) = compare(wanted, declared)
    assert (only["object"], only["field"]) == ("model/chat", "parallelism.experts")
    assert (only["declared"], only["file"], only["owner"]) == (2, 4, "gitops")
    assert compare(wanted, {"spec": wanted["spec"]}) == []
    assert compare(wanted, None)[0]["declared"] is None


def test_every_field_of_every_kind_can_be_explained() -> None:
    assert any("experts" in line for line in explanation("model.parallelism"))
    assert "cpu | cuda | ascend" in "\n".join(explanation("cluster.nodes.devices.kind"))
    assert "default 128" in "\n".join(explanation("model.engine"))
    with pytest.raises(UsageError, match="no field 'expert'"):
        explanation("model.parallelism.expert")
    with pytest.raises(UsageError):
        explanation("pod")


def test_what_is_old_is_said_to_be_old_and_the_last_picture_is_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    plain = {
        "cluster": "c", "revision": 1, "at": 0.0, "nodes": [], "models": [], "transitions": [],
        "events": [], "store_age_s": 42.0,
    }  # fmt: skip
    remember(home, plain)
    kept = last_known(home)
    assert kept is not None and kept[0].store_age_s == 42.0 and kept[1] < 60
    assert "nothing for 42s" in stale_text(kept[0])
    (tmp_path / "last-fleet.json").write_text(json.dumps({"kept_at": 1}))
    assert last_known(home) is None


def test_describing_what_is_not_there_says_how_to_find_it() -> None:
    empty = FleetView("c", 1, 0.0, (), (), (), (), {})
    assert stale_text(empty) == ""
    for kind in ("model", "node", "worker", "transition"):
        with pytest.raises(UsageError, match=f"no {kind} named 'x'"):
            describe_lines(empty, kind, "x")


def test_logs_are_named_by_part_and_by_node(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for path in (home.log_file("controller"), home.node("n1").log_file("hmm")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert set(log_files(home)) == {"controller", "n1/hmm"}


def test_a_watch_is_one_table_with_its_titles_once() -> None:
    columns = (Column("NAME", lambda row: row["name"]), Column("N", lambda row: row["n"], True))
    out, widths = io.StringIO(), []
    for rows in ([{"name": "chat", "n": "2"}], [{"name": "a-longer-one", "n": "12"}]):
        listing = Listing("model", rows, columns, lambda row: row["name"])
        print_listing(listing, "table", out, widths)
    lines = out.getvalue().splitlines()
    assert lines == ["NAME  N", "chat  2", "a-longer-one  12"]
    print_listing(listing, "table", out, widths)
    assert out.getvalue().splitlines()[-1] == lines[-1]
