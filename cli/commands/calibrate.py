"""`moectl calibrate`: fit the planner's time model to measured rows."""

from pathlib import Path
from typing import Annotated, Any

import typer


def calibrate(
    file: Annotated[Path, typer.Argument(help="CSV of measured rows; its columns are below.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the constants and the report here.")
    ] = None,
    folds: Annotated[
        bool, typer.Option("--folds/--no-folds", help="Score on left-out models too.")
    ] = True,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Fit the few constants of the time model, and say how good they are.

    Rows that cannot be believed are left out by rules on their labels, each named with its rule.
    Models and devices are names of the catalogue, or paths: `moectl tune` writes such rows.

    A row is one measurement of a replica under a steady load. Its columns are

    \b
      model_path  precision  gemm_quant_mode
      system                        the device
      backend  backend_version      the engine
      isl  osl                      input and output tokens
      batch_size                    running requests of one attention replica
      tp_size  pp_size  attention_dp_size  moe_tp_size  moe_ep_size
      measured_ttft_ms  measured_tpot_ms

    \b
    Examples:
      moectl calibrate rows.csv
      moectl calibrate rows.csv --out my-constants.json
      moectl plan -m gpt-oss-120b --fleet 8xh200 --constants my-constants.json
    """
    import json

    from ...core.errors import UsageError
    from ..calibration import run
    from ..render import print_data

    if output not in ("text", "json"):
        raise UsageError(f"-o {output}: not a format", next_step="use text or json")
    report = run(file, folds=folds)
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if output == "json":
        print_data(report, "json")
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    used, seen = report["rows_used"], report["rows_seen"]
    print(f"{used} of {seen} rows believed; left out by rule:")
    for rule, lines in report["left_out"].items():
        print(f"  {rule:22} {len(lines):5}")
    for name, errors in report["scores"].items():
        parts = "  ".join(f"{key} {value:.3f}" for key, value in errors.items())
        print(f"{name:22} {parts}")
    print("constants:")
    for name, value in report["constants"].items():
        if "@" not in name:
            print(f"  {name:22} {value:.4g}")
