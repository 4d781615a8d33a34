"""Which loads are in the files, layer by layer?

Read are the summed loads of the SGLang recorder (`logical_count`, [layers, experts] or
[periods, layers, experts]) and a bare JSON table of the same form. Leading layers without experts
are dense layers: rows of zeros in every file are left out, and the rest is checked by the planner.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RefusedError
from ..placement.copies.layout import Floats, checked_loads


def read_expert_loads(path: Path) -> NDArray[np.float64]:
    """[layers, experts], dense layers included; RefusedError naming file and place."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RefusedError(f"{path}: missing", next_step="name a file of expert loads") from error
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path}: no JSON: {error}") from error
    table = plain.get("logical_count") if isinstance(plain, dict) else plain
    if table is None:
        raise RefusedError(f"{path}: has no logical_count [layers, experts]")
    try:
        counts = np.asarray(table, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise RefusedError(f"{path}: layers of different size, or no numbers: {error}") from error
    if counts.ndim == 3:  # several recorded periods
        counts = counts.sum(axis=0)
    checked_loads(counts, str(path))  # NaN, negative, another shape: refused here, by name
    return counts


def moe_layers(paths: Sequence[Path]) -> dict[str, Floats]:
    """Name of each file -> [MoE layers, experts]; RefusedError when they are of other models."""
    tables = [read_expert_loads(path) for path in paths]
    shapes = {table.shape for table in tables}
    if len(shapes) > 1:
        raise RefusedError(
            f"files of different shapes: {sorted(shapes)}",
            next_step="give loads of one model at a time",
        )
    used = np.any([table.sum(axis=1) > 0 for table in tables], axis=0)
    if not used.any():
        raise RefusedError(f"{paths[0]}: all loads are zero")
    names = _names(paths)
    return {
        name: checked_loads(table[used], str(path))
        for name, table, path in zip(names, tables, paths, strict=True)
    }


def _names(paths: Sequence[Path]) -> list[str]:
    """Stems, or whole paths where stems are not unique."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
