"""The winner as YAML that `moectl diff` and `moectl apply` take, with its evidence above it.

The document is the one that was tuned, with the changed fields of `spec.engine` set and a source
path that is good from anywhere. It goes through the loader of specs before it is written, so what
the controller would refuse is never handed to a person.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import RefusedError
from ...core.paths import write_private
from .space import Settings, Value


def changed(present: Settings, winner: Settings) -> dict[str, tuple[Value, Value]]:
    """Field -> (before, after) of the fields that differ."""
    return {
        name: (present[name], value) for name, value in winner.items() if present[name] != value
    }


def patched_document(
    raw: Mapping[str, Any], folder: str, settings: Mapping[str, Value]
) -> dict[str, Any]:
    """A Model document with these engine fields, and its source path made absolute: `folder`."""
    spec = dict(raw["spec"])
    spec["source"] = {**spec["source"], "path": folder}
    spec["engine"] = {**(spec.get("engine") or {}), **settings}
    return {**raw, "spec": spec}


def patch_text(document: Mapping[str, Any], evidence: Sequence[str]) -> str:
    """The file: evidence as comments, then the document. Raises SpecError when it is not a spec."""
    import yaml

    from ...core.spec import load_text

    body = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)
    text = "".join(f"# {line}\n" for line in evidence) + body
    load_text(text, "the patch")
    return text


def write_patch(path: Path, document: Mapping[str, Any], evidence: Sequence[str]) -> None:
    """Write the patch for its owner's eyes: it names folders of this machine.

    Raises RefusedError when the file cannot be written.
    """
    text = patch_text(document, evidence)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, text)
    except OSError as error:
        raise _not_there(path, error.strerror) from error


def check_place(path: Path) -> None:
    """Raise RefusedError when a patch could not be written there; asked before the long work."""
    folder = path.absolute().parent
    while not os.path.exists(folder):  # also where we may not look, which `Path.exists` raises on
        folder = folder.parent
    if not folder.is_dir():
        raise _not_there(path, f"{folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_there(path, f"{folder} cannot be written to")
    if path.is_dir():
        raise _not_there(path, "that is a folder")


def _not_there(path: Path, why: str | None) -> RefusedError:
    return RefusedError(
        f"the patch cannot be written to {path}: {why}", next_step="name another with --out"
    )


def evidence_lines(result: Mapping[str, Any]) -> list[str]:
    """What was measured, in words, from the result that `-o json` prints."""
    verdict, trials = result["verdict"], result["trials"]
    before, after = result["baseline"], result["winner"]
    fields = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in result["changed"].items())
    ratio = verdict["ratio"]
    return [
        f"moectl tune {result['model']}: {fields}",
        f"{trials['finished']} trials, {trials['pruned']} of them pruned; seed {result['seed']}, "
        f"workload {result['workload']['digest']} of {result['workload']['requests']} requests",
        f"on {result['device']}, commit {result['commit']}, kernels {result['kernels']}",
        f"tokens/s {before['tokens_per_s']:g} -> {after['tokens_per_s']:g}; ratio least "
        f"{ratio['min']:.3f}, median {ratio['median']:.3f}, most {ratio['max']:.3f} over "
        f"{verdict['pairs']} alternating pairs, {verdict['wins']} won "
        f"({verdict['wins_needed']} needed)",
        f"p95 to first token ms {before['ttft_p95_ms']:g} -> {after['ttft_p95_ms']:g} (limit "
        f"{_limit(result['limits']['ttft_ms'])}), between tokens ms {before['itl_p95_ms']:g} -> "
        f"{after['itl_p95_ms']:g} (limit {_limit(result['limits']['itl_ms'])})",
        _how_to_apply(result["changed"]),
    ]


def _how_to_apply(fields: Mapping[str, Any]) -> str:
    from ...core.spec import LIVE_SETTINGS

    fixed = [name for name in fields if name not in LIVE_SETTINGS]
    if not fixed:
        return "A running model takes these settings while it serves."
    return f"A running model cannot take {', '.join(fixed)}: delete it first, then apply this."


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
