"""How is one field of a file changed with everything else left as it is? Comments and order stay.

`moectl scale --write FILE` changes the repository instead of the fleet, because a field that
belongs to gitops has its truth there. The file is checked before and after: nothing is written that
`moectl apply` would refuse.
"""

import io
import itertools
from pathlib import Path
from typing import Any

from ..core.errors import NotFoundError, RefusedError
from ..core.paths import write_private

Width = int | str  # a number of devices, or "auto"


def patch_width(path: Path, model: str, wanted: str, *, dry_run: bool) -> tuple[Width, Width]:
    """Set `spec.parallelism.experts` of a Model in a file; returns old and new width.

    `wanted` is "8", "+2", "-1" or "auto". Raises NotFoundError when the file declares no such
    model, SpecError when the result would be refused.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from ..core.spec import load_text

    yaml = YAML()  # round trip: keeps comments, order, quotes and anchors
    yaml.preserve_quotes = True
    yaml.width = 4096  # never fold a line that was not folded
    try:
        text = path.read_text(encoding="utf-8")
        documents = list(yaml.load_all(text))
    except (OSError, YAMLError) as error:
        raise RefusedError(f"{path} cannot be read: {error}") from error
    spec = _find(documents, model, path)
    old = _width_of(spec["parallelism"])
    new = _new_width(old, wanted, path)
    if isinstance(spec["parallelism"], str):
        spec["parallelism"] = {"experts": new}
    else:
        spec["parallelism"]["experts"] = new
    patched = _same_ends(text, _dump(yaml, documents, text))
    load_text(patched, str(path))
    if not dry_run:
        mode = path.stat().st_mode & 0o777
        write_private(path, patched)
        path.chmod(mode)
    return old, new


def _width_of(parallelism: Any) -> Width:
    value = parallelism if isinstance(parallelism, str) else parallelism["experts"]
    return value if value == "auto" else int(value)


def _new_width(old: Width, wanted: str, path: Path) -> Width:
    if wanted == "auto":
        return wanted
    if wanted[0] not in "+-":
        return int(wanted)
    if isinstance(old, str):
        raise RefusedError(
            f"{path}: the width is auto, so {wanted} has nothing to count from",
            next_step="give a number of devices",
        )
    return old + int(wanted)


def _find(documents: list[Any], model: str, path: Path) -> Any:
    for document in documents:
        if not isinstance(document, dict) or document.get("kind") != "Model":
            continue
        if document.get("metadata", {}).get("name") == model:
            return document["spec"]
    raise NotFoundError(
        f"{path} declares no model {model!r}", next_step="name the file that declares it"
    )


def _dump(yaml: Any, documents: list[Any], text: str) -> str:
    """As it was indented: lists of the file are either flush with their key or set in by two."""
    lines = text.splitlines()
    set_in = any(
        line.lstrip().startswith("- ") and line.startswith(_indent(before) + "  ")
        for before, line in itertools.pairwise(lines)
        if before.rstrip().endswith(":")
    )
    if set_in:
        yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump_all(documents, out)
    return out.getvalue()


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _same_ends(before: str, after: str) -> str:
    """The file begins and ends as it did: no separator or last line end of our own."""
    if after.startswith("---\n") and not before.startswith("---"):
        after = after[4:]
    return after if before.endswith("\n") else after.rstrip("\n")
