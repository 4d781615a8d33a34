"""What does the planner's time model learn from the machine that was tuned?

Steady loads are measured with the settings that came out of the study and written as rows; then
`moectl calibrate` is run on them. The error after it is that of rows that the fit has not seen
(each row is predicted by a fit on the others), beside the error of the shipped constants. Constants
that do not predict better are not written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import RefusedError
from ...core.paths import write_private
from ..progress import Progress
from .measure import LiveEngine
from .space import Settings
from .steady import CELLS, Steady, device_sheet, measure_cell, measure_device, rows_csv


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured on, and where rows, sheet and constants are written."""

    live: LiveEngine
    spec: Mapping[str, Any]
    checkpoint: Path
    home: Path
    seed: int


def recalibrate(bench: Bench, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Measure, fit, and say how much better the predictions are; as plain data."""
    import psutil

    from ..bench.frame import commit, core_count

    part = "calibrate"
    progress.start(part, "the device")
    with bench.live.threads(settings):
        bytes_per_s, flops = measure_device()
    found: list[Steady] = []
    for number, cell in enumerate(CELLS, 1):
        progress.start(part, f"{number}/{len(CELLS)}: {cell.running} x {cell.input_tokens} tokens")
        try:
            found.append(measure_cell(bench.live, bench.spec, settings, cell, bench.seed))
        except RefusedError:  # longer than this model's context, or than its KV
            continue
    sheet, rows = bench.home / "device.yaml", bench.home / "rows.csv"
    share = psutil.virtual_memory().total // core_count()
    write_private(sheet, device_sheet(bytes_per_s, flops, share))
    write_private(rows, rows_csv(found, str(bench.checkpoint), str(sheet), commit()))
    report = _fit(bench.home, rows)
    outcome = "better" if report["constants"] else "not better than the shipped constants"
    progress.end(part, "ok", f"{report['rows_used']} rows, {outcome}")
    return report


def _fit(home: Path, rows: Path) -> dict[str, Any]:
    """Errors of TPOT and TTFT before and after, and the file of constants where they are better."""
    from .. import calibration

    files = {"rows": str(rows), "device": str(home / "device.yaml")}
    constants = home / "constants.json"
    constants.unlink(missing_ok=True)  # of an earlier run: other settings, other rows
    try:
        before, after = calibration.unseen_errors(rows)
        fitted = calibration.run(rows, folds=False)
    except RefusedError as error:
        none = {"rows_used": 0, "before": None, "after": None, "constants": None}
        return {**files, **none, "reason": error.message}
    is_better = sum(after.values()) < sum(before.values())
    if is_better:
        write_private(constants, json.dumps(fitted, indent=1) + "\n")
    return {
        **files,
        "rows_used": fitted["rows_used"],
        "before": before,
        "after": after,
        "constants": str(constants) if is_better else None,
    }
