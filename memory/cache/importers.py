"""Which tool wrote a file of routes, and what are its rows?

Known are the vLLM route logger (JSON lines, a `meta` line first, one file a layer or all in one),
per-token JSON lines ({"layer", "experts", "token_idx", "problem_id", "gating_probs"}), the SGLang
expert recorder (per-token records; its summed loads are another thing: `loads.py`), and npz arrays
[tokens, layers, k]. Detection looks at the content, never at the name alone. A line that cannot
be read is refused with its number, or counted and dropped when repair was asked for.
"""

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from ...core.errors import RefusedError
from .arrays import read_npz, read_sglang
from .rows import REPAIR, ImportChoices, Rows, assemble
from .trace import RoutingTrace, load_trace

FORMATS = ("vllm", "per-token", "sglang", "npz", "trace")
NPZ_MAGIC = b"PK\x03\x04"
GZIP_MAGIC = b"\x1f\x8b"


def detect_format(path: Path) -> str:
    """The name of a file's format, out of FORMATS or "loads"; RefusedError when it is none."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == NPZ_MAGIC:
            return _kind_of_zip(path)
        return _kind_of_text(path)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror or error}") from error


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.removesuffix(".npy") for name in file.namelist()}
    except zipfile.BadZipFile as error:
        raise RefusedError(f"{path}: the file is cut or damaged: {error}") from error
    if "head" in names and "experts" in names:
        return "trace"
    if names & {"experts", "routes", "topk_ids", "arr_0"}:
        return "npz"
    if any(name.endswith("data.pkl") for name in names):
        raise RefusedError(
            f"{path}: a torch file, which is a pickle and may run code when read",
            next_step="write its records as JSON where it was made, with lists for tensors",
        )
    raise RefusedError(f"{path}: an npz without experts, routes or topk_ids in it")


def _kind_of_text(path: Path) -> str:
    for _, line in _lines(path):
        if not line.strip():
            continue
        try:
            first = json.loads(line)
        except json.JSONDecodeError:
            return _kind_of_document(path)
        return _kind_of_object(path, first)
    raise RefusedError(f"{path}: empty")


def _kind_of_object(path: Path, first: Any) -> str:
    if isinstance(first, dict):
        if first.get("type") in ("meta", "route") or "topk_ids" in first:
            return "vllm"
        if "experts" in first and "layer" in first:
            return "per-token"
        if "logical_count" in first:
            return "loads"
        if "records" in first:
            return "sglang"
    raise RefusedError(
        f"{path}:1: not a row of a known recorder", next_step=f"known formats: {', '.join(FORMATS)}"
    )


def _kind_of_document(path: Path) -> str:
    """A JSON document over several lines, or a first line that is cut."""
    try:
        return _kind_of_object(path, json.loads("\n".join(line for _, line in _lines(path))))
    except json.JSONDecodeError as error:
        raise RefusedError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def import_trace(paths: Sequence[Path], choices: ImportChoices | None = None) -> RoutingTrace:
    """A trace out of one recorder's files (several: one for each layer, or parts).

    Raises RefusedError naming file, line and reason; formats are never mixed in one import.
    """
    chosen = choices or ImportChoices()
    kinds = {path: detect_format(path) for path in paths}
    if len(set(kinds.values())) != 1:
        mixed = ", ".join(f"{path.name} is {kind}" for path, kind in kinds.items())
        raise RefusedError(f"formats are mixed: {mixed}", next_step="import them one by one")
    kind = kinds[paths[0]]
    if kind == "loads":
        raise RefusedError(
            f"{paths[0]}: summed loads of experts, not routes of tokens",
            next_step="`moectl trace stats` reads loads; a trace needs per-token records",
        )
    if kind == "trace":
        if len(paths) > 1:
            raise RefusedError("several traces cannot be joined into one")
        return load_trace(paths[0])
    return assemble([_read(path, kind, chosen) for path in paths], chosen)


def _read(path: Path, kind: str, choices: ImportChoices) -> Rows:
    if kind == "npz":
        return read_npz(path)
    if kind == "sglang":
        return read_sglang(path)
    return _read_json_lines(path, kind, choices)


def _read_json_lines(path: Path, kind: str, choices: ImportChoices) -> Rows:
    rows = Rows(source=path.name)
    take = _take_vllm if kind == "vllm" else _take_per_token
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            take(rows, json.loads(line), number)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if not choices.repair:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise RefusedError(f"{path}:{number}: {reason}", next_step=REPAIR) from error
            rows.unreadable += 1
    return rows


def _take_vllm(rows: Rows, record: dict[str, Any], number: int) -> None:
    if record.get("type") == "meta":
        rows.model = str(record.get("model_id", ""))
        return
    if record.get("type", "route") != "route":
        raise ValueError(f"type {record['type']!r} is not a row of the vLLM route logger")
    _take(rows, (record["req_id"], record["token_idx"], record["layer"], number), record, "topk")


def _take_per_token(rows: Rows, record: dict[str, Any], number: int) -> None:
    request = f"{record.get('dataset', '')}/{record.get('problem_id', record.get('request', 0))}"
    _take(rows, (request, record["token_idx"], record["layer"], number), record, "gating")


def _take(rows: Rows, place: tuple[Any, Any, Any, int], record: dict[str, Any], style: str) -> None:
    experts = record["topk_ids"] if style == "topk" else record["experts"]
    weights = record.get("topk_weights" if style == "topk" else "gating_probs")
    if not isinstance(experts, list) or not experts:
        raise ValueError("the list of experts is empty or no list")
    if rows.experts and len(experts) != len(rows.experts[0]):
        raise ValueError(f"{len(experts)} experts, {len(rows.experts[0])} in the rows before")
    if weights is not None and len(weights) != len(experts):
        raise ValueError(f"{len(weights)} weights for {len(experts)} experts")
    request, position, layer, number = place
    values = [int(expert) for expert in experts]
    rows.position.append(int(position))  # before the others: an error here leaves no half row
    rows.layer.append(int(layer))
    rows.request.append(str(request))
    rows.experts.append(values)
    rows.lines.append(number)
    if weights is not None:
        rows.weights.append([float(weight) for weight in weights])
    if "token_id" in record:
        rows.token_ids.append(int(record["token_id"]))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, of a plain or gzipped file; a cut gzip is refused."""
    with path.open("rb") as probe:
        packed = probe.read(2) == GZIP_MAGIC
    number = 0
    try:
        with _open_text(path, packed) as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}:{number + 1}: the file is cut or damaged: {error}") from error


def _open_text(path: Path, packed: bool) -> TextIO:
    if packed:
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8"))
    return path.open("rt", encoding="utf-8")
