"""What do measured rows teach the time model? The work behind `moectl calibrate` and its bench.

Reads a CSV, lets the planner's rules choose what can be believed, fits, and scores on folds.
"""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RefusedError

if TYPE_CHECKING:
    from ..placement.hardware import Hardware
    from ..placement.model_facts import ModelShape
    from ..placement.rows import LeftOut
    from ..placement.scores import Believed, Score

#: A fit on two rows and the score of a third: fewer say nothing.
ROWS_MIN = 3


def read_table(file: Path) -> list[dict[str, str]]:
    """Records of a CSV with the columns of the public silicon set; raises RefusedError."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            records = list(reader)
            names = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RefusedError(f"{file}: {error}", next_step="give a CSV of measured rows") from error
    from ..placement.rows import COLUMNS

    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise RefusedError(
            f"{file}: columns missing: {', '.join(missing)}",
            next_step=f"needed: {', '.join(COLUMNS)}",
        )
    return records


def believed(file: Path) -> "tuple[Believed, list[LeftOut], int]":
    """(evidence, rows left out with their rule, rows seen) of a CSV."""
    from ..placement.rows import believe, read_rows
    from ..placement.scores import gather
    from . import catalogue

    table = read_table(file)
    shapes, devices = catalogue.all_shapes(), catalogue.devices()
    _read_named(table, shapes, devices)
    rows, unknown = read_rows(table, shapes, devices)
    kept, left = believe(rows)
    if not kept:
        raise RefusedError(
            f"{file}: no row can be used", next_step="see the rules in docs/placement.md"
        )
    return gather(kept, left), [*unknown, *left], len(table)


def _read_named(
    table: list[dict[str, str]],
    shapes: "dict[str, tuple[str, ModelShape]]",
    devices: "dict[str, Hardware]",
) -> None:
    """Add the models and devices that rows name by path: a person's own, in no catalogue."""
    from . import catalogue

    for name in {record["model_path"] for record in table} - shapes.keys():
        if Path(name).exists():
            shapes[name] = catalogue.find_shape(name)
    for name in {record["system"] for record in table} - devices.keys():
        if Path(name).is_file():
            devices[name] = catalogue.find_device(name)


def run(file: Path, *, folds: bool) -> dict[str, Any]:
    """Fit and report, as plain data."""
    import numpy as np

    from ..placement import scores
    from ..placement.weigh import token_seconds

    evidence, left, seen = believed(file)
    fitted = scores.fit_centered(evidence)
    tpot, ttft = token_seconds(fitted, evidence.evidence.table)
    found = {
        "fitted_on_all": summary(
            scores.score(evidence, np.log(tpot), np.log(ttft), scores.by_model)
        )
    }
    if folds:
        for name, key in (
            ("left_out_model", scores.by_model),
            ("left_out_device", scores.by_device),
        ):
            logs = scores.folded(evidence, key)
            found[name] = summary(scores.score(evidence, *logs, key))
            found[f"{name}_refined"] = summary(scores.refined_score(evidence, *logs, key))
    return {
        "rows_seen": seen,
        "rows_used": len(evidence.rows),
        "left_out": by_rule(left),
        "scores": found,
        "constants": {name: round(value, 9) for name, value in fitted.values.items()},
    }


def unseen_errors(file: Path) -> tuple[dict[str, float], dict[str, float]]:
    """(shipped constants, fits on all other rows): mean relative errors of TPOT and TTFT.

    Every row is predicted by a fit that has not seen it: what a fit is worth on the next row.
    Raises RefusedError when fewer than three rows can be believed.
    """
    import numpy as np

    from ..placement import scores
    from ..placement.weigh import token_seconds
    from . import catalogue

    evidence, _, _ = believed(file)
    if len(evidence.rows) < ROWS_MIN:
        raise RefusedError(f"{file}: {len(evidence.rows)} rows are too few to fit and to score")
    shipped = token_seconds(catalogue.constants(), evidence.evidence.table)
    unseen = scores.folded(evidence, lambda row: str(row.line))
    found = []
    for tpot, ttft in ((np.log(shipped[0]), np.log(shipped[1])), unseen):
        score = scores.score(evidence, tpot, ttft, scores.by_model)
        found.append(
            {"tpot_mape": round(score.tpot_mape, 4), "ttft_mape": round(score.ttft_mape, 4)}
        )
    return found[0], found[1]


def by_rule(left: "list[LeftOut]") -> dict[str, list[int]]:
    """Rule -> lines of the file; rules that take away first-token times alone end in (ttft)."""
    found: dict[str, list[int]] = {}
    for item in left:
        name = item.rule if item.what == "all" else f"{item.rule} ({item.what})"
        found.setdefault(name, []).append(item.line)
    return {name: sorted(lines) for name, lines in sorted(found.items())}


def summary(score: "Score") -> dict[str, float]:
    """A score as plain numbers."""
    return {
        "tpot_mape": round(score.tpot_mape, 4),
        "ttft_mape": round(score.ttft_mape, 4),
        "spearman": round(score.spearman, 4),
        "layout_score": round(score.layout_score, 4),
        "groups": score.groups,
        "rows": score.rows,
    }
