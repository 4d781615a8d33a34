"""Measured rows of a tuned machine teach the planner's time model, or are said not to."""

import json
from pathlib import Path

import pytest

from moectl.cli import calibration, catalogue, specs
from moectl.cli.tune import recalibrate
from moectl.cli.tune.steady import CELLS, Steady, device_sheet, rows_csv
from moectl.core.errors import RefusedError
from moectl.placement.constants import Constants
from moectl.placement.weigh import columns, token_seconds

DEMO = str(specs.clusters_dir() / "models" / "demo")


def write_rows(folder: Path, factors: dict[str, float], cells=CELLS) -> Path:
    """Rows as a machine would give them whose constants are these multiples of the shipped ones."""
    sheet, rows = folder / "device.yaml", folder / "rows.csv"
    sheet.write_text(device_sheet(8e9, 60e9, 12 << 30))
    shipped = catalogue.constants().values
    true = Constants({k: v * factors.get(k, 1.0) for k, v in shipped.items()})

    def write(found: list[Steady]) -> None:
        rows.write_text(rows_csv(found, DEMO, str(sheet), "test"))

    write([Steady(cell, 0.5, 0.02) for cell in cells])
    evidence, left, _ = calibration.believed(rows)
    assert left == []
    tpot, ttft = token_seconds(true, columns([row.point for row in evidence.rows]))
    write([Steady(c, float(b), float(a)) for c, a, b in zip(cells, tpot, ttft, strict=True)])
    return rows


def test_rows_name_model_and_device_by_path_and_all_are_believed(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, {})
    report = calibration.run(rows, folds=False)
    assert (report["rows_seen"], report["rows_used"]) == (len(CELLS), len(CELLS))
    assert report["left_out"] == {}


def test_a_path_that_is_not_there_is_left_out_by_name(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, {})
    rows.write_text(rows.read_text().replace(DEMO, DEMO + "-not-there"))
    with pytest.raises(RefusedError, match="no row can be used"):
        calibration.run(rows, folds=False)


def test_a_slower_machine_is_predicted_better_after_it_was_measured(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, {"step_s": 4.0, "admit_s": 3.0, "linear_read": 0.6})
    before, after = calibration.unseen_errors(rows)
    assert after["tpot_mape"] < 0.6 * before["tpot_mape"]
    assert after["ttft_mape"] < before["ttft_mape"]
    report = recalibrate._fit(tmp_path, rows)
    assert (report["before"], report["after"]) == (before, after)
    fitted = catalogue.constants(Path(report["constants"]))
    assert fitted.values["step_s"] > catalogue.constants().values["step_s"]
    assert json.loads(Path(report["constants"]).read_text())["rows_used"] == len(CELLS)


def test_constants_that_predict_no_better_are_not_written(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, {})
    (tmp_path / "constants.json").write_text("{}")  # of an earlier run
    report = recalibrate._fit(tmp_path, rows)
    assert report["before"]["tpot_mape"] == pytest.approx(0.0, abs=1e-3)
    assert report["constants"] is None and not (tmp_path / "constants.json").exists()


def test_two_rows_are_too_few_to_say_anything(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, {}, CELLS[:2])
    report = recalibrate._fit(tmp_path, rows)
    assert (report["before"], report["rows_used"]) == (None, 0)
    assert "too few" in report["reason"]
