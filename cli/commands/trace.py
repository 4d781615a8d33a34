"""`moectl trace`: import, check, describe and replay recorded routes; train a path predictor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ...memory.cache.trace import RoutingTrace

RepairOption = Annotated[
    bool, typer.Option("--repair", help="Drop rows that are broken instead of refusing them.")
]
FilesArgument = Annotated[
    list[Path], typer.Argument(help="Files of one recorder; several for its layers or parts.")
]


def build_app() -> typer.Typer:
    """The group of commands about routing traces."""
    app = typer.Typer(help="Import, check and replay recorded routes.", no_args_is_help=True)
    app.command("import")(import_)
    app.command("validate")(validate)
    app.command("stats")(stats)
    app.command("replay")(replay)
    app.command("train")(train)
    return app


def import_(
    files: FilesArgument,
    out: Annotated[Path, typer.Option("--out", help="The trace to write (npz).")],
    repair: RepairOption = False,
    keep_warmup: Annotated[
        bool, typer.Option("--keep-warmup", help="Keep the engine's own dummy rows.")
    ] = False,
    experts: Annotated[int, typer.Option(help="Experts of a layer; 0: largest id + 1.")] = 0,
) -> None:
    """Make a trace out of another tool's files.

    Known: vLLM route logger, per-token JSON lines, SGLang recorder (per token), npz arrays.

    \b
    Examples:
      moectl trace import routes.jsonl.gz --out routes.npz --repair
      moectl trace import layer0.jsonl.gz layer12.jsonl.gz --out two-layers.npz
    """
    import sys

    from ...memory.cache.importers import import_trace
    from ...memory.cache.rows import ImportChoices
    from ...memory.cache.trace import save_trace

    trace = import_trace(files, ImportChoices(repair, keep_warmup, experts))
    save_trace(trace, out)
    print(trace.counts.text(), file=sys.stderr)
    print(
        f"{out}: {trace.tokens} tokens, {len(trace.layers)} layers, {trace.k} of "
        f"{trace.experts_per_layer} experts, {len(trace.request_ids())} requests"
    )


def validate(files: FilesArgument, repair: RepairOption = False) -> None:
    """Say whether a trace is sound; exit 3 when it is not.

    \b
    Examples:
      moectl trace validate routes.npz
      moectl trace validate routes.jsonl.gz --repair
    """
    from ...core.errors import RefusedError
    from ...memory.cache.stats import check_trace

    trace = _load(files, repair)
    found = check_trace(trace)
    for line in found:
        print(line)
    if any(not line.startswith("note:") for line in found):
        raise RefusedError(f"{trace.source}: not sound", next_step="see the lines above")
    print(f"sound: {trace.tokens} tokens, {len(trace.layers)} layers")


def stats(
    files: FilesArgument,
    repair: RepairOption = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml.")] = "text",
) -> None:
    """Describe a trace, or the summed loads of the SGLang recorder, in numbers.

    \b
    Examples:
      moectl trace stats routes.npz
      moectl trace stats loads.json -o json
    """
    import dataclasses

    from ...core.errors import UsageError
    from ...memory.cache.importers import detect_format
    from ...memory.cache.loads import load_stats, read_loads
    from ...memory.cache.stats import trace_stats
    from ..render import print_data

    if output not in ("text", "json", "yaml"):
        raise UsageError(f"-o {output}: not a format", next_step="use text, json or yaml")
    if detect_format(files[0]) == "loads":
        plain = dataclasses.asdict(load_stats(read_loads(files[0])))
    else:
        plain = dataclasses.asdict(trace_stats(_load(files, repair)))
    if output == "text":
        for key, value in plain.items():
            print(f"{key:20} {value}")
    else:
        print_data(plain, output)


def replay(
    files: FilesArgument,
    slots: Annotated[
        str, typer.Option(help="Resident experts; several with commas. Default: shares of all.")
    ] = "",
    policy: Annotated[
        str, typer.Option(help="Policies with commas, or all.")
    ] = "lru,trajectory,min",
    pool: Annotated[str, typer.Option(help="shared or per-layer.")] = "shared",
    protocol: Annotated[str, typer.Option(help="one or set: how a demand is admitted.")] = "one",
    repair: RepairOption = False,
    curve: Annotated[
        Path | None, typer.Option(help="Write the first policy's hit-rate curve (JSON).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into a PNG.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")] = "table",
) -> None:
    """Replay a trace through a cache and tell the hits, beside the best possible.

    \b
    Examples:
      moectl trace replay routes.npz
      moectl trace replay routes.npz --slots 96,128 --policy all
      moectl trace replay routes.npz --policy trajectory --curve curve.json --plot curve.png
    """
    from ...core.records import to_json
    from ..curves import PolicyRun, curve_of, draw_curves, print_runs, run_policies

    trace = _load(files, repair)
    runs: list[PolicyRun] = run_policies(trace, (policy, slots), pool, protocol)
    print_runs(runs, output)
    if curve is not None:
        curve.write_text(to_json(curve_of(trace, runs, pool)) + "\n", encoding="utf-8")
    if plot is not None:
        draw_curves(trace, runs, plot)


def train(
    files: FilesArgument,
    out: Annotated[Path, typer.Option("--out", help="The predictor to write (safetensors).")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 300,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 7,
    hold_out: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of requests kept back to judge on.")
    ] = 0.2,
) -> None:
    """Train the routing-path predictor (token ids -> all layers' experts) on recorded routes.

    \b
    Examples:
      moectl trace train routes.npz --out paths.safetensors
    """
    from ..path_training import train_and_judge

    found = train_and_judge(_load(files, False), out, (steps, seed, hold_out))
    print(f"{out}: {found['bytes'] / 1e6:.2f} MB, {found['seconds']:.0f} s of training")
    print(
        f"held-out requests: recall@k {found['recall_k']:.3f}, "
        f"recall@(k+1) {found['recall_k1']:.3f}, precision@k {found['precision_k']:.3f}"
    )


def _load(files: list[Path], repair: bool) -> "RoutingTrace":
    """Read one trace out of the files, telling what was dropped."""
    import sys

    from ...memory.cache.importers import import_trace
    from ...memory.cache.rows import ImportChoices

    trace: Any = import_trace(files, ImportChoices(repair=repair))
    print(trace.counts.text(), file=sys.stderr)
    return trace
