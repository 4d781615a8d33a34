"""How is a long training run shown? A bar on a terminal, a line every now and then elsewhere."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .train.loop import TrainOptions, train

PLAIN_EVERY_STEPS = 100


def run_training(out: Path, *, seed: int, steps: int, threads: int) -> dict[str, Any]:
    """Train into a folder with progress on stderr; returns the record of the run."""
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    options = TrainOptions(seed=seed, steps=steps, warmup_steps=min(100, max(1, steps // 10)))
    if sys.stderr.isatty():
        return _with_bar(out, options)
    return train(out, options, _plain_line)


def _plain_line(at: dict[str, Any]) -> None:
    if at["step"] % PLAIN_EVERY_STEPS == 0 or at["step"] == at["steps"]:
        rate = f"{at['tokens_per_s']:.0f} tokens/s"
        text = f"step {at['step']}/{at['steps']} loss {at['loss']:.3f} {rate}"
        print(text, file=sys.stderr, flush=True)


def _with_bar(out: Path, options: TrainOptions) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("train", total=options.steps, loss=float("nan"), rate=0.0)

        def tell(at: dict[str, Any]) -> None:
            progress.update(task, completed=at["step"], loss=at["loss"], rate=at["tokens_per_s"])

        report: Callable[[dict[str, Any]], None] = tell
        return train(out, options, report)
