"""`moectl bench`: run one benchmark beside its baselines and print what came out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..bench import BENCHES

NAMES = ", ".join(BENCHES)
OUT = Path("docs/benchmarks")


def complete_name(incomplete: str) -> list[str]:
    """Names for shell completion."""
    return [name for name in BENCHES if name.startswith(incomplete)]


def bench(
    name: Annotated[str, typer.Argument(help=f"{NAMES}.", autocompletion=complete_name)],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Input files; default: those of --data.")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
    rows: Annotated[
        Path | None, typer.Option(help="For plan: score another file of measured rows.")
    ] = None,
    score_on: Annotated[
        list[Path] | None, typer.Option(help="For balance: score plans on these files instead.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result into a PNG.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of real data [$MOECTL_DATA].")] = None,
    budget: Annotated[str, typer.Option(help="Time that the bench may take.")] = "15m",
    full: Annotated[
        bool, typer.Option("--full", help="The whole grid, resumable; also writes docs/benchmarks.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest honest run, under a minute.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 7,
) -> None:
    """Run a benchmark: moectl and its baselines side by side.

    \b
    Examples:
      moectl bench cache
      moectl bench cache -o json --plot cache.png
    """
    import json

    from ...core.errors import UsageError
    from ..bench.frame import BenchOptions, Shelf, commit, print_tables, to_plain
    from ..progress import open_progress

    if output not in ("table", "json"):
        raise UsageError(f"-o {output}: not a format", next_step="use table or json")
    module = _module(name)
    inputs = " ".join(str(path) for path in [*(files or []), "on", *(score_on or [])])
    shelf = Shelf(OUT / f".{name}-partial.json" if full else None, f"{commit()} {seed} {inputs}")
    with open_progress() as progress:
        options = BenchOptions(
            files=(*(files or ()), *([rows] if rows else ())),
            score_on=tuple(score_on or ()),
            data=data,
            budget_s=_seconds(budget),
            full=full,
            quick=quick,
            seed=seed,
            shelf=shelf,
            report=progress.start,
        )
        result = module.run(options)
    plain = to_plain(result)
    if full:
        _write(OUT / f"{name}-full.json", json.dumps(plain, indent=2) + "\n")
        shelf.clear()
    if plot is not None:
        if not hasattr(module, "draw"):
            raise UsageError(f"bench {name} draws nothing")
        module.draw(result, plot)
    if output == "json":
        print(json.dumps(plain, indent=2))
    else:
        print_tables(result)


def _module(name: str) -> Any:
    from importlib import import_module

    from ...core.errors import UsageError

    if name not in BENCHES:
        raise UsageError(f"bench {name}: not known", next_step=f"use one of: {NAMES}")
    return import_module(f"..bench.{BENCHES[name][0]}", __package__)


def _seconds(budget: str) -> float:
    from ...core.errors import UsageError
    from ...core.units import parse_duration_s

    try:
        return parse_duration_s(budget)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
