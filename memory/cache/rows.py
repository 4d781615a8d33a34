"""How do raw rows of a recorder become a trace, and what is refused on the way?

Every importer yields `Rows`: one row for each (token, layer), with the line it came from. This file
drops warm-up rows, joins the layers of a token, checks ids and completeness, and either refuses
with line and reason or, only when asked, repairs by dropping. The counts always add up. Pure.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...core.errors import RefusedError
from .passes import separate_passes
from .trace import UNKNOWN_PHASE, RoutingTrace, RowCounts

WARMUP_RUN = 64  # an engine's dummy batch repeats one row; real text never does so this long
REPAIR = "add --repair to drop such rows; the counts are printed"

Array = npt.NDArray[np.int64]


@dataclass(slots=True)
class Rows:
    """Columns of the rows of one file, in the file's order."""

    source: str
    request: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    layer: list[int] = field(default_factory=list)
    experts: list[list[int]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)  # empty when none are recorded
    token_ids: list[int] = field(default_factory=list)  # empty when none are recorded
    lines: list[int] = field(default_factory=list)
    unreadable: int = 0
    model: str = ""

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True, slots=True)
class ImportChoices:
    """What the person asked of an import."""

    repair: bool = False
    keep_warmup: bool = False
    experts_per_layer: int = 0  # 0: the largest id seen, plus one


@dataclass(slots=True)
class _Table:
    """The rows of all files as arrays, with a mask of what is still in."""

    layer: Array
    experts: Array
    weights: npt.NDArray[np.float32] | None
    request: Array
    position: Array
    token_ids: Array | None
    lines: Array
    file: Array
    keep: npt.NDArray[np.bool_]


def warmup_rows(experts: Array) -> int:
    """How many leading rows are the engine's own: whole runs of at least 64 equal rows."""
    at = 0
    while at < len(experts):
        differs = np.flatnonzero((experts[at:] != experts[at]).any(axis=1))
        run = int(differs[0]) if len(differs) else len(experts) - at
        if run < WARMUP_RUN:
            break
        at += run
    return at


def assemble(files: list[Rows], choices: ImportChoices) -> RoutingTrace:
    """One trace out of the rows of one or more files; raises RefusedError with line and reason."""
    total = sum(len(rows) + rows.unreadable for rows in files)
    unreadable = sum(rows.unreadable for rows in files)
    if total == unreadable:
        raise RefusedError(f"{files[0].source}: no rows of routes in it")
    table = _table(files)
    warmup = 0 if choices.keep_warmup else _drop_warmup(table)
    if not table.keep.any():
        raise RefusedError(f"{files[0].source}: all {total} rows are warm-up rows of the engine")
    experts_per_layer = choices.experts_per_layer or int(table.experts[table.keep].max()) + 1
    wrong = _drop_out_of_range(table, files, choices, experts_per_layer)
    keys, named = _token_keys(table, np.flatnonzero(table.keep))
    order, duplicate, incomplete = _join(table, files, choices, keys)
    tokens, layers = order.shape
    requests, positions, phases = _who(table, order, named)
    return RoutingTrace(
        experts=table.experts[order].astype(np.int32),
        experts_per_layer=experts_per_layer,
        layers=tuple(int(i) for i in table.layer[order[0]]),
        requests=requests,
        positions=positions,
        phases=phases,
        weights=None if table.weights is None else table.weights[order],
        token_ids=(
            None if table.token_ids is None else table.token_ids[order[:, 0]].astype(np.int32)
        ),
        model=files[0].model,
        source=", ".join(rows.source for rows in files),
        counts=RowCounts(total, tokens * layers, warmup, incomplete, unreadable, wrong, duplicate),
    )


def _table(files: list[Rows]) -> _Table:
    widths = {len(row) for rows in files for row in rows.experts}
    if len(widths) != 1:
        raise RefusedError(f"{files[0].source}: rows of {sorted(widths)} experts are mixed")
    names = list(dict.fromkeys(name for rows in files for name in rows.request))
    number = {name: i for i, name in enumerate(names)}
    whole = all(len(rows.weights) == len(rows) for rows in files)
    tokens = all(len(rows.token_ids) == len(rows) for rows in files)

    def column(name: str) -> Array:
        return np.array([value for rows in files for value in getattr(rows, name)], np.int64)

    size = sum(len(rows) for rows in files)
    return _Table(
        layer=column("layer"),
        experts=column("experts"),
        weights=column_of_weights(files) if whole else None,
        request=np.array([number[name] for rows in files for name in rows.request], np.int64),
        position=column("position"),
        token_ids=column("token_ids") if tokens else None,
        lines=column("lines"),
        file=np.repeat(np.arange(len(files)), [len(rows) for rows in files]),
        keep=np.ones(size, bool),
    )


def column_of_weights(files: list[Rows]) -> npt.NDArray[np.float32]:
    """[rows, k] gate weights of all files."""
    return np.array([row for rows in files for row in rows.weights], np.float32)


def _drop_warmup(table: _Table) -> int:
    dropped = 0
    for file in np.unique(table.file):
        for layer in np.unique(table.layer[table.file == file]):
            index = np.flatnonzero((table.file == file) & (table.layer == layer))
            count = warmup_rows(table.experts[index])
            table.keep[index[:count]] = False
            dropped += count
    return dropped


def _where(table: _Table, files: list[Rows], row: int) -> str:
    return f"{files[int(table.file[row])].source}:{int(table.lines[row])}"


def _drop_out_of_range(
    table: _Table, files: list[Rows], choices: ImportChoices, experts_per_layer: int
) -> int:
    experts = table.experts
    ordered = np.sort(experts, axis=1)
    repeats = (np.diff(ordered, axis=1) == 0).any(axis=1)
    outside = ((experts < 0) | (experts >= experts_per_layer)).any(axis=1) | (table.layer < 0)
    wrong = (outside | repeats) & table.keep
    if wrong.any() and not choices.repair:
        row = int(np.flatnonzero(wrong)[0])
        what = "one expert twice" if not outside[row] else "an id out of range"
        raise RefusedError(
            f"{_where(table, files, row)}: experts {experts[row].tolist()} of layer "
            f"{int(table.layer[row])}: {what} (ids are 0 to {experts_per_layer - 1}); "
            f"{int(wrong.sum())} such rows",
            next_step=REPAIR,
        )
    table.keep &= ~wrong
    return int(wrong.sum())


def _join(
    table: _Table, files: list[Rows], choices: ImportChoices, keys: Array
) -> tuple[npt.NDArray[np.int64], int, int]:
    """Row numbers [tokens, layers], with the counts of duplicate and incomplete rows."""
    rows = np.flatnonzero(table.keep)
    layers, layer_at = np.unique(table.layer[rows], return_inverse=True)
    tokens, first, token_at = np.unique(keys, return_index=True, return_inverse=True)
    grid = np.full((len(tokens), len(layers)), -1, np.int64)
    grid[token_at[::-1], layer_at[::-1]] = rows[::-1]  # the first of duplicates stays
    duplicate = len(rows) - int((grid >= 0).sum())
    whole = (grid >= 0).all(axis=1)
    incomplete = int((grid[~whole] >= 0).sum())
    if (duplicate or incomplete) and not choices.repair:
        raise RefusedError(_join_reason(table, files, (grid, layers, duplicate)), next_step=REPAIR)
    if not whole.any():
        raise RefusedError(f"{files[0].source}: no token has all {len(layers)} layers")
    kept = grid[whole]
    return kept[np.argsort(first[whole], kind="stable")], duplicate, incomplete


def _join_reason(
    table: _Table, files: list[Rows], found: tuple[npt.NDArray[np.int64], Array, int]
) -> str:
    grid, layers, duplicate = found
    missing = np.flatnonzero((grid < 0).any(axis=1))
    if not len(missing):
        return f"{files[0].source}: {duplicate} rows repeat a token and layer"
    token = int(missing[0])
    row = int(grid[token][grid[token] >= 0][0])
    absent = [int(layer) for layer in layers[grid[token] < 0]]
    return (
        f"{_where(table, files, row)}: token {int(table.position[row])} of request "
        f"{int(table.request[row])} lacks layers {absent[:8]}; {len(missing)} such tokens"
    )


def _token_keys(table: _Table, rows: npt.NDArray[np.int64]) -> tuple[Array, bool]:
    """One number for each row's token, and whether the log itself names tokens.

    Where (request, position) names a token once in each layer, it is the key. Loggers that
    restart the position in every forward pass and name one request for all are joined by the
    order of their rows in each layer instead.
    """
    span = int(table.position[rows].max()) + 1
    named = table.request[rows] * span + table.position[rows]
    layer = table.layer[rows]
    pairs = np.unique(np.stack([named, layer]), axis=1).shape[1]
    if pairs > 0.9 * len(rows):
        return named, True
    by_order = np.zeros(len(rows), np.int64)
    for value in np.unique(layer):
        at = layer == value
        by_order[at] = np.arange(int(at.sum()))
    return by_order, False


def _who(
    table: _Table, order: npt.NDArray[np.int64], named: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Requests, positions and phases of the tokens."""
    first = order[:, 0]
    if not named:
        return separate_passes(table.position[first])
    requests = table.request[first].astype(np.int32)
    return (
        requests,
        table.position[first].astype(np.int32),
        np.full(len(first), UNKNOWN_PHASE, np.uint8),
    )
