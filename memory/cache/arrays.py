"""How are routes read that were recorded as arrays: npz files and the SGLang expert recorder?

npz: one array of ids [tokens, layers, k] under `experts`, `routes`, `topk_ids` or `arr_0`, with
optional `weights` of the same shape and `requests`, `positions`, `token_ids`, `layers`.
SGLang (mode per_token): {"records": [{"topk_ids_of_layer": [layers][tokens][k], "input_ids",
"positions", "forward_pass_id"}]} as JSON. Its torch files are pickles, which can run code when they
are read: they are refused, with the way to write them as JSON.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import RefusedError
from .rows import Rows

ROUTE_NAMES = ("experts", "routes", "topk_ids", "arr_0")


def read_npz(path: Path) -> Rows:
    """Rows of an npz; a "line" is the token's number + 1. RefusedError when shapes are wrong."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RefusedError(f"{path}: not a readable npz: {error}") from error
    name = next(name for name in ROUTE_NAMES if name in arrays)
    ids = arrays[name]
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise RefusedError(
            f"{path}: {name} is {ids.dtype}{list(ids.shape)}; whole numbers [tokens, layers, k] "
            "are needed"
        )
    rows = Rows(source=path.name)
    _extend(rows, ids, path, arrays)
    return rows


def read_sglang(path: Path) -> Rows:
    """Rows of the SGLang recorder's per-token records."""
    document = _sglang_document(path)
    records = document.get("records") if isinstance(document, dict) else None
    if not isinstance(records, list) or not records:
        raise RefusedError(f"{path}: no per-token records in it")
    rows = Rows(source=path.name)
    for number, record in enumerate(records, 1):
        routes = record.get("topk_ids_of_layer")
        if routes is None:
            raise RefusedError(f"{path}: record {number} has no topk_ids_of_layer")
        ids = np.asarray(routes, np.int64)
        if ids.ndim != 3:
            raise RefusedError(f"{path}: record {number}: shape {list(ids.shape)}, not 3 axes")
        ids = ids.transpose(1, 0, 2)
        extra = {"requests": np.full(len(ids), int(record.get("rank", 0)))}
        start = rows.position[-1] + 1 if rows.position else 0
        extra["positions"] = np.arange(start, start + len(ids))
        if record.get("input_ids") is not None:
            extra["token_ids"] = np.asarray(record["input_ids"], np.int64)
        _extend(rows, ids, path, extra)
    return rows


def _sglang_document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: not JSON: {error}") from error


def _extend(
    rows: Rows, ids: npt.NDArray[Any], path: Path, extra: dict[str, npt.NDArray[Any]]
) -> None:
    tokens, layers, k = ids.shape

    def per_token(name: str, default: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values = extra.get(name, default)
        if values.shape != (tokens,):
            raise RefusedError(f"{path}: {name} has shape {list(values.shape)}, not [{tokens}]")
        return np.repeat(values, layers)

    number = np.arange(tokens)
    rows.request += [str(value) for value in per_token("requests", np.zeros(tokens, np.int64))]
    rows.position += per_token("positions", number).tolist()
    rows.layer += np.tile(extra.get("layers", np.arange(layers)), tokens).tolist()
    rows.experts += ids.reshape(-1, k).tolist()
    rows.lines += per_token("lines", number + 1).tolist()
    if "weights" in extra:
        if extra["weights"].shape != ids.shape:
            raise RefusedError(f"{path}: weights and experts differ in shape")
        rows.weights += extra["weights"].reshape(-1, k).tolist()
    if "token_ids" in extra:
        rows.token_ids += per_token("token_ids", number).tolist()
