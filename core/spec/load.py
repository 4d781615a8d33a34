"""From YAML to checked specs: all mistakes of all documents at once, each with line and fix.

    apiVersion: moectl.dev/v1
    kind: Model
    metadata: {name: chat}
    spec: {...}

Reads text, never resolves paths inside a spec and never looks at the machine. A loader that stopped
at the first mistake would make people mend a file by trying; so nothing here raises before the end.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..errors import Mistake, SpecError
from .cluster import ClusterSpec, check_cluster
from .explain import did_you_mean, findings_of
from .model import ModelSpec, check_model
from .types import Name, SpecModel
from .values import Finding
from .values import Path as SpecPath
from .yaml_tree import Tree, YamlSyntaxError, read_trees

API_VERSION = "moectl.dev/v1"
FILE_BYTES_MAX = 16 * 2**20  # 10,000 nodes of 8 devices are about 8 MB
STDIN_NAME = "-"

Spec = ClusterSpec | ModelSpec
S = TypeVar("S", bound=SpecModel)


class Metadata(SpecModel):
    """What every document says about itself."""

    name: Name


class Envelope(SpecModel):
    """The fields around `spec`; `kind` decides what `spec` is."""

    api_version: str
    kind: str
    metadata: Metadata
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of document: its type, and the rules over several of its fields."""

    model: type[SpecModel]
    check: Callable[[object], Iterator[Finding]]


KINDS = {"Cluster": Kind(ClusterSpec, check_cluster), "Model": Kind(ModelSpec, check_model)}


@dataclass(frozen=True, slots=True)
class Document:
    """One declared object. `raw` is the whole document as it was written."""

    kind: str
    name: str
    spec: Spec
    file: str
    raw: dict[str, Any]


def load_documents(source: Path | str, *, file: str | None = None) -> list[Document]:
    """The documents of a file, of a folder's *.yaml files, or of stdin (`-`).

    With `file`, `source` is text that came from there. Raises SpecError with every mistake.
    """
    if file is not None:
        return load_text(str(source), file)
    texts, mistakes = _read_all(source)
    documents: list[Document] = []
    for name, text in texts:
        found, wrong = _documents_of(text, name)
        documents += found
        mistakes += wrong
    return _finish(documents, mistakes, str(source))


def load_text(text: str, file: str = "<text>") -> list[Document]:
    """The documents of a text; raises SpecError with every mistake."""
    documents, mistakes = _documents_of(text, file)
    return _finish(documents, mistakes, file)


def cluster_spec_from_plain(plain: dict[str, Any]) -> ClusterSpec:
    """The inverse of `to_plain` for a Cluster; raises SpecError (lines are 0)."""
    return _from_plain(ClusterSpec, "Cluster", plain)


def model_spec_from_plain(plain: dict[str, Any]) -> ModelSpec:
    """The inverse of `to_plain` for a Model; raises SpecError (lines are 0)."""
    return _from_plain(ModelSpec, "Model", plain)


def spec_from_plain(kind: str, plain: dict[str, Any]) -> Spec:
    """The inverse of `to_plain` for a kind known by name; raises SpecError."""
    if kind == "Cluster":
        return cluster_spec_from_plain(plain)
    if kind == "Model":
        return model_spec_from_plain(plain)
    raise SpecError([Mistake("spec", 0, "kind", f"{kind!r} is unknown", did_you_mean(kind, KINDS))])


def to_plain(spec: SpecModel) -> dict[str, Any]:
    """The canonical form: every default written out, bytes as integers, durations as text."""
    return spec.model_dump(mode="json", by_alias=True)


def _from_plain(model: type[S], kind: str, plain: dict[str, Any]) -> S:
    spec, findings = _validate(model, KINDS[kind].check, plain)
    if spec is None or findings:
        raise SpecError([Mistake(kind, 0, _dotted(f.path), f.reason, f.fix) for f in findings])
    return spec


def _validate(
    model: type[S], check: Callable[[object], Iterator[Finding]], value: Any
) -> tuple[S | None, list[Finding]]:
    """The spec, and every finding; paths start with "spec"."""
    spec, findings = None, list(check(value))
    try:
        spec = model.model_validate(value)
    except ValidationError as error:
        findings += findings_of(error, model)
    return spec, [Finding(("spec", *f.path), f.reason, f.fix) for f in findings]


def _read_all(source: Path | str) -> tuple[list[tuple[str, str]], list[Mistake]]:
    """(file, text) of everything that `source` names, and what could not be read."""
    if str(source) == STDIN_NAME:
        return [("stdin", sys.stdin.read(FILE_BYTES_MAX))], []
    path = Path(source)
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml") and f.is_file())
    texts, mistakes = [], []
    for file in files:
        try:
            texts.append((str(file), _read_file(file)))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            fix = "give a YAML file that exists and can be read"
            mistakes.append(Mistake(str(file), 0, "file", reason.lower(), fix))
    return texts, mistakes


def _read_file(file: Path) -> str:
    with file.open("rb") as stream:
        data = stream.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from error


def _documents_of(text: str, file: str) -> tuple[list[Document], list[Mistake]]:
    trees, syntax = read_trees(text)
    documents, mistakes = [], []
    for tree in trees:
        document, findings = _document(tree, file)
        mistakes += [_mistake(tree, file, finding) for finding in findings]
        if document is not None and not findings:
            documents.append(document)
    mistakes += _same_names(trees, file)
    if syntax is not None:
        mistakes.append(_syntax_mistake(syntax, file))
    elif not trees:
        fix = f"write a document that starts with 'apiVersion: {API_VERSION}'"
        mistakes.append(Mistake(file, 1, "document", "there is nothing in it", fix))
    return documents, mistakes


def _document(tree: Tree, file: str) -> tuple[Document | None, list[Finding]]:
    value = tree.value
    findings = list(tree.findings)
    if not isinstance(value, dict):
        reason = "a document must be an object"
        return None, [*findings, Finding((), reason, "start with 'apiVersion:' and 'kind:'")]
    try:
        Envelope.model_validate(value)
    except ValidationError as error:
        findings += findings_of(error, Envelope)
    version, kind_name = value.get("apiVersion"), value.get("kind")
    if isinstance(version, str) and version != API_VERSION:
        reason = f"{version!r} is unknown"
        findings.append(Finding(("apiVersion",), reason, f"use {API_VERSION}"))
    kind = KINDS.get(kind_name) if isinstance(kind_name, str) else None
    if kind is None:
        if isinstance(kind_name, str):
            reason, fix = f"{kind_name!r} is unknown", did_you_mean(kind_name, KINDS)
            findings.append(Finding(("kind",), reason, fix))
        return None, findings
    if not isinstance(value.get("spec"), dict):
        return None, findings  # the envelope has said so
    spec, wrong = _validate(kind.model, kind.check, value["spec"])
    findings += wrong
    if findings or not isinstance(spec, (ClusterSpec, ModelSpec)):
        return None, findings
    return Document(str(kind_name), value["metadata"]["name"], spec, file, value), []


def _same_names(trees: list[Tree], file: str) -> Iterator[Mistake]:
    """Two documents of one kind and name: which of them would be meant?"""
    seen: dict[tuple[Any, Any], int] = {}
    for tree in trees:
        value = tree.value if isinstance(tree.value, dict) else {}
        metadata = value.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        key = (str(value.get("kind")), str(name))
        if name is not None and key in seen:
            reason = f"{key[0]} {key[1]!r} is declared on line {seen[key]} too"
            finding = Finding(("metadata", "name"), reason, "rename or remove one of them")
            yield _mistake(tree, file, finding)
        seen.setdefault(key, tree.first_line)


def _mistake(tree: Tree, file: str, finding: Finding) -> Mistake:
    line = tree.line_of(finding.path)
    return Mistake(file, line, _dotted(finding.path), finding.reason, finding.fix)


def _syntax_mistake(error: YamlSyntaxError, file: str) -> Mistake:
    return Mistake(file, error.line, "document", f"not YAML: {error.reason}", error.fix)


def _dotted(path: SpecPath) -> str:
    """("spec", "nodes", 0, "name") -> "spec.nodes[0].name"."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.lstrip(".") or "document"


def _finish(documents: list[Document], mistakes: list[Mistake], source: str) -> list[Document]:
    if mistakes:
        raise SpecError(sorted(set(mistakes), key=lambda m: (m.file, m.line, m.path)))
    if not documents:
        fix = "give a folder with *.yaml files in it"
        raise SpecError([Mistake(source, 0, "document", "there is nothing in it", fix)])
    return documents
