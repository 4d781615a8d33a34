"""`moectl demo`: the main job, end to end, in three minutes."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the run into this picture (.png, .svg).")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    spec: Annotated[
        str, typer.Option("--spec", help="Spec to run; its first model is used.")
    ] = "clusters/local.yaml",
    conversations: Annotated[
        int, typer.Option(min=1, max=64, help="Conversations streamed at once.")
    ] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the sampled conversations.")] = 7,
    quiet: Annotated[
        float, typer.Option(min=0.1, help="Seconds of rest around each scale, for percentiles.")
    ] = 5.0,
    keep_logs: Annotated[
        Path | None, typer.Option("--keep-logs", help="Copy the fleet's logs into this folder.")
    ] = None,
) -> None:
    """Bring a fleet up, stream conversations, scale 2 -> 4 -> 3 -> 2, kill a worker, tear down.

    Runs in a directory and on ports of its own, beside any fleet that you have. Every answer is
    compared with a run that never scaled.

    \b
    Examples:
      moectl demo
      moectl demo --plot demo.png
      moectl demo -o json
    """
    from ...core.errors import UsageError

    if output not in ("text", "json"):
        raise UsageError(f"-o {output}: not a format", next_step="use text or json")
    from ..demo.run import DemoOptions, run_demo

    options = DemoOptions(
        spec=spec,
        conversations=conversations,
        seed=seed,
        plot=plot,
        output=output,
        keep_logs=keep_logs,
        quiet_s=quiet,
    )
    raise typer.Exit(run_demo(options))
