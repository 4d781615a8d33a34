"""Every mistake of a spec is reported at once, with its line, its path and a fix."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from moectl import clusters
from moectl.core import spec
from moectl.core.errors import Mistake, SpecError
from moectl.core.spec import schema

GOOD = """\
apiVersion: moectl.dev/v1
kind: Cluster
metadata: {name: local}
spec:
  nodes:
    - name: n1
      devices:
        - {id: d0, hbm: 64MiB, pageSize: 16KiB}
---
apiVersion: moectl.dev/v1
kind: Model
metadata: {name: chat}
spec:
  source: {path: models/demo}
  parallelism: {experts: 1}
"""


def mistakes_of(text: str) -> tuple[Mistake, ...]:
    with pytest.raises(SpecError) as caught:
        spec.load_text(text, "x.yaml")
    return caught.value.mistakes


def cluster(body: str) -> str:
    return f"apiVersion: moectl.dev/v1\nkind: Cluster\nmetadata: {{name: c}}\nspec:\n{body}\n"


def model(body: str) -> str:
    head = "apiVersion: moectl.dev/v1\nkind: Model\nmetadata: {name: m}\nspec:\n"
    return f"{head}  source: {{path: p}}\n  parallelism: {{experts: 2}}\n{body}\n"


def one(text: str) -> tuple[int, str, str, str]:
    found = mistakes_of(text)
    assert len(found) == 1, [str(item) for item in found]
    return found[0].line, found[0].path, found[0].reason, found[0].fix


def test_good_documents_are_typed_with_their_defaults() -> None:
    local, chat = spec.load_text(GOOD)
    assert (local.kind, local.name, chat.kind, chat.name) == ("Cluster", "local", "Model", "chat")
    assert isinstance(local.spec, spec.ClusterSpec)
    assert isinstance(chat.spec, spec.ModelSpec)
    device = local.spec.nodes[0].devices[0]
    assert (device.hbm, device.page_size, device.kind) == (64 * 2**20, 16384, "cpu")
    assert (local.spec.lease_ttl, local.spec.nodes[0].address) == (5.0, "127.0.0.1")
    assert (chat.spec.memory.kv_per_device, chat.spec.engine.max_context) == (32 * 2**20, None)
    assert (chat.spec.replay_deadline, chat.spec.slo.ttft) == (60.0, None)
    assert chat.raw["spec"] == {"source": {"path": "models/demo"}, "parallelism": {"experts": 1}}


@pytest.mark.parametrize(("file", "devices"), [("local.yaml", 4), ("local-8.yaml", 8)])
def test_the_specs_in_the_repository_are_good(file: str, devices: int) -> None:
    local, chat = spec.load_documents(clusters.folder() / file)
    assert isinstance(local.spec, spec.ClusterSpec)
    assert isinstance(chat.spec, spec.ModelSpec)
    assert local.spec.device_count == devices
    assert len({node.address for node in local.spec.nodes}) == len(local.spec.nodes)
    assert chat.spec.parallelism.experts == 2


def test_the_canonical_form_reads_back_to_the_same_spec() -> None:
    for document in spec.load_text(GOOD):
        plain = spec.to_plain(document.spec)
        assert json.loads(json.dumps(plain)) == plain
        assert spec.spec_from_plain(document.kind, plain) == document.spec


def test_every_mistake_of_every_document_is_reported_at_once() -> None:
    text = (
        GOOD.replace("64MiB", "64MiBs")
        .replace("name: n1", "nmae: n1")
        .replace("experts: 1", "experts: 0")
    )
    text += "---\nkind: Modle\nmetadata: {name: C}\nspec: {}\n"
    found = [(item.line, item.path) for item in mistakes_of(text)]
    assert found == [
        (6, "spec.nodes[0].name"),
        (6, "spec.nodes[0].nmae"),
        (8, "spec.nodes[0].devices[0].hbm"),
        (15, "spec.parallelism.experts"),
        (17, "apiVersion"),
        (17, "kind"),
        (18, "metadata.name"),
    ]


def test_the_message_has_file_line_path_reason_and_fix() -> None:
    with pytest.raises(SpecError) as caught:
        spec.load_text(model("  engine: {maxRequest: 3}"), "x.yaml")
    assert str(caught.value).splitlines() == [
        "1 mistake in the spec",
        "  x.yaml:7: spec.engine.maxRequest: unknown field; fix: did you mean 'maxRequests'? known:"
        " maxBatchTokens, maxRequests, prefillChunk, kvBlockTokens, maxContext, dtype,"
        " prefixCache, threads",
    ]
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("body", "path", "reason", "fix"),
    [
        ("  slo: {ttft: 5}", "spec.slo.ttft", "unit is missing", "write 5s or 5ms"),
        ("  slo: {ttft: 0s}", "spec.slo.ttft", "zero", "above zero"),
        ("  slo: [1]", "spec.slo", "expected an object, found a list", "indented"),
        ("  slo:", "spec.slo", "expected an object, found nothing", "indented"),
        ("  memory: {kvPerDevice: 1.5.0}", "spec.memory.kvPerDevice", "not a quantity", "64GiB"),
        ("  precision: fast", "spec.precision", "'fast' is not a choice", "standard, reproducible"),
        ("  engine: {kvBlockTokens: 1.5}", "spec.engine.kvBlockTokens", "whole number", "digits"),
        (
            "  engine: {kvBlockTokens: 9999}",
            "spec.engine.kvBlockTokens",
            "too large",
            "1024 or less",
        ),
        ("  engine: {maxContext: yes}", "spec.engine.maxContext", "not a quantity", "such as 4096"),
        (
            "  engine: {prefillChunk: 1Ki}",
            "spec.engine.prefillChunk",
            "does not fit",
            "raise maxBatch",
        ),
        (
            "  engine: {max_requests: 3}",
            "spec.engine.max_requests",
            "unknown field",
            "'maxRequests'?",
        ),
        ("  replay_deadline: 3s", "spec.replay_deadline", "unknown field", "'replayDeadline'?"),
        ("  slo: {tpot: 2001-01-01}", "spec.slo.tpot", "not a", "80ms"),
    ],
)
def test_a_mistake_in_a_model_names_its_reason_and_a_fix(
    body: str, path: str, reason: str, fix: str
) -> None:
    line, found_path, found_reason, found_fix = one(model(body))
    assert (line, found_path) == (7, path)
    assert reason in found_reason
    assert fix in found_fix


NODE = "  nodes:\n    - name: n1\n      devices: [{id: d0, hbm: 64MiB}]\n"


@pytest.mark.parametrize(
    ("body", "line", "path", "reason"),
    [
        ("  nodes: []", 5, "spec.nodes", "the list is empty"),
        ("  nodes: {n1: {}}", 5, "spec.nodes", "expected a list, found an object"),
        (
            NODE + "    - name: n1\n      devices: [{id: d0, hbm: 2MiB}]",
            8,
            "spec.nodes[1].name",
            "too",
        ),
        (
            NODE.replace("64MiB}", "64MiB}, {id: d0, hbm: 64MiB}"),
            7,
            "spec.nodes[0].devices[1].id",
            "too",
        ),
        (NODE.replace("64MiB", "1MiB"), 7, "spec.nodes[0].devices[0].hbm", "whole number"),
        (
            NODE.replace("64MiB", "64MiB, pageSize: 3KiB"),
            7,
            "spec.nodes[0].devices[0].pageSize",
            "page",
        ),
        (
            NODE.replace("64MiB", "64MiB, kind: gpu"),
            7,
            "spec.nodes[0].devices[0].kind",
            "not a choice",
        ),
        (NODE.replace("n1", "N1"), 6, "spec.nodes[0].name", "not a name"),
        (NODE.replace("n1", "no"), 6, "spec.nodes[0].name", "False is not a name"),
        (NODE.replace("n1", "a" * 41), 6, "spec.nodes[0].name", "not a name"),
        (NODE.replace("n1", "n1\n      address: ::1"), 7, "spec.nodes[0].address", "IPv4"),
        (NODE + "  leaseTTL: 5s", 8, "spec.leaseTTL", "unknown field"),
    ],
)
def test_a_mistake_in_a_cluster_names_its_line_and_reason(
    body: str, line: int, path: str, reason: str
) -> None:
    found = one(cluster(body))
    assert found[:2] == (line, path)
    assert reason in found[2]


def test_a_key_that_stands_twice_is_a_mistake_on_its_second_line() -> None:
    line, path, reason, _ = one(model("  slo: {}\n  slo: {}"))
    assert (line, path) == (8, "spec.slo")
    assert "first on line 7" in reason


def test_two_documents_of_one_kind_and_name_are_a_mistake() -> None:
    line, path, reason, _ = one(model("") + "---\n" + model(""))
    assert (line, path) == (11, "metadata.name")
    assert "declared on line 1 too" in reason


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "nothing in it"),
        ("# only a comment\n---\n---\n", 1, "nothing in it"),
        ("a: [1\nb: 2", 2, "not YAML"),
        ("a: 'x\n", 2, "not YAML"),
        ("\ta: 1", 1, "not YAML"),
        ("a: 1\n b: 2", 2, "not YAML"),
        ("a: *nobody", 1, "not YAML"),
        ("a: \x00", 1, "not YAML"),
        ("- 1", 1, "must be an object"),
        ("just text", 1, "must be an object"),
        pytest.param("[" * 5000, 1, "not YAML", id="brackets without end"),
    ],
)
def test_text_that_is_no_document_is_refused_with_a_line(text: str, line: int, reason: str) -> None:
    found = one(text)
    assert found[0] == line
    assert reason in found[2]


def test_good_documents_before_a_syntax_error_are_still_checked() -> None:
    found = mistakes_of(model("  precision: fast") + "---\na: [")
    assert [item.path for item in found] == ["spec.precision", "document"]


def test_aliases_that_unfold_without_end_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert any("too deep or too large" in item.reason for item in mistakes_of(bomb))


def test_an_object_that_holds_itself_is_refused() -> None:
    assert any("too deep" in m.reason for m in mistakes_of(model("  slo: &me\n    ttft: *me")))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd []", "!secret x", "!!binary '%'"])
def test_tags_never_make_objects(tag: str) -> None:
    assert mistakes_of(model(f"  precision: {tag}"))


def test_a_wrong_document_version_says_the_right_one() -> None:
    line, path, reason, fix = one(GOOD.replace("moectl.dev/v1", "moectl.dev/v2", 1))
    assert (line, path, fix) == (1, "apiVersion", "use moectl.dev/v1")
    assert "moectl.dev/v2" in reason


def test_missing_parts_say_what_belongs_in_them() -> None:
    found = mistakes_of("apiVersion: moectl.dev/v1\nkind: Model\nmetadata: {}\nspec: {}\n")
    assert [(item.path, item.fix) for item in found] == [
        ("metadata.name", "add 'name'"),
        ("spec.parallelism", "add 'parallelism' with experts"),
        ("spec.source", "add 'source' with path"),
    ]


def test_files_folders_and_stdin_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.yaml").write_text(model(""), encoding="utf-8")
    (tmp_path / "a.yml").write_text("\ufeff" + cluster(NODE), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not a spec", encoding="utf-8")
    names = [(d.kind, Path(d.file).name) for d in spec.load_documents(tmp_path)]
    assert names == [("Cluster", "a.yml"), ("Model", "b.yaml")]
    monkeypatch.setattr("sys.stdin", io.StringIO(GOOD))
    assert [d.file for d in spec.load_documents("-")] == ["stdin", "stdin"]
    assert [d.file for d in spec.load_documents(GOOD, file="here")] == ["here", "here"]


def test_what_cannot_be_read_is_a_mistake_without_a_line(tmp_path: Path) -> None:
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for source, reason in ((tmp_path / "no.yaml", "no such file"), (binary, "not UTF-8")):
        with pytest.raises(SpecError) as caught:
            spec.load_documents(source)
        assert caught.value.mistakes[0].line == 0
        assert reason.lower() in caught.value.mistakes[0].reason
    binary.unlink()
    with pytest.raises(SpecError, match="nothing in it"):
        spec.load_documents(tmp_path)


@pytest.mark.parametrize(
    "plain",
    [{}, {"source": {"path": "p"}, "parallelism": {"experts": 2}, "more": 1}, "text", None],
)
def test_a_plain_form_that_is_wrong_is_refused(plain: Any) -> None:
    with pytest.raises(SpecError):
        spec.model_spec_from_plain(plain)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'Model'"):
        spec.spec_from_plain("model", {})


def test_specs_are_frozen() -> None:
    (_, chat) = spec.load_text(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        chat.spec.precision = "reproducible"  # type: ignore[union-attr, misc]


def test_the_schema_in_the_repository_is_made_from_the_types() -> None:
    stored = clusters.folder() / "schema" / "moectl.dev-v1.json"
    assert stored.read_text(encoding="utf-8") == schema.schema_text()


def test_parallelism_auto_is_short_for_experts_auto() -> None:
    head = "apiVersion: moectl.dev/v1\nkind: Model\nmetadata: {name: chat}\nspec:\n"
    for text in ("auto", "{experts: auto}"):
        (found,) = spec.load_text(f"{head}  source: {{path: p}}\n  parallelism: {text}\n")
        assert spec.to_plain(found.spec)["parallelism"] == {"experts": "auto"}


@pytest.mark.parametrize(
    ("text", "path", "word"),
    [
        ("wide", "spec.parallelism", "'wide' is not a parallelism"),
        ("{experts: wide}", "spec.parallelism.experts", "'wide' is not a width"),
        ("{experts: 5000}", "spec.parallelism.experts", "5000 is too large"),
        ("{experts: 1.5}", "spec.parallelism.experts", "1.5 is not a width"),
        ("3", "spec.parallelism", "expected an object, found a whole number (3)"),
    ],
)
def test_a_wrong_parallelism_is_told_with_its_line(text: str, path: str, word: str) -> None:
    head = "apiVersion: moectl.dev/v1\nkind: Model\nmetadata: {name: chat}\nspec:\n"
    (only,) = mistakes_of(f"{head}  source: {{path: p}}\n  parallelism: {text}\n")
    assert (only.line, only.path) == (6, path) and word in only.reason
    assert "auto" in only.fix or path == "spec.parallelism"


def test_a_device_names_its_sheet_and_any_figure_of_it() -> None:
    changes = "bandwidthTBs: 3.1, peakTflops: {bf16: 900}, links: {node: {GBs: 300}}"
    device = f"{{id: d0, kind: cuda, hbm: 80GiB, hardware: {{sheet: h100, {changes}}}}}"
    text = (
        "apiVersion: moectl.dev/v1\nkind: Cluster\nmetadata: {name: c}\nspec:\n  nodes:\n"
        f"    - name: n1\n      devices: [{device}]\n"
    )
    (found,) = spec.load_text(text)
    plain = spec.to_plain(found.spec)["nodes"][0]["devices"][0]["hardware"]
    assert plain["links"]["node"]["GBs"] == 300 and plain["bandwidthTBs"] == 3.1
    (wrong,) = mistakes_of(text.replace("h100", "h1000"))
    assert "did you mean 'h100'" in wrong.fix and wrong.line == 7
