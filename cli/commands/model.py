"""`moectl model`: train the demo model, make a random one, read what a checkpoint is."""

from pathlib import Path
from typing import Annotated

import typer


def build_app() -> typer.Typer:
    """The group of commands about checkpoints."""
    app = typer.Typer(help="Train, make and inspect checkpoints.", no_args_is_help=True)
    app.command("train")(train)
    app.command("init")(init)
    app.command("facts")(facts)
    app.command("routing")(routing)
    return app


def train(
    out: Annotated[Path, typer.Argument(help="Folder to write the model into.")],
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 3000,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of torch; 0 = as many as there are cores.")
    ] = 0,
) -> None:
    """Train the demo model on the text of Python's own standard library.

    Can be interrupted and run again: it goes on from the last checkpoint in the folder.

    \b
    Examples:
      moectl model train ./demo
      moectl model train ./demo --seed 7 --steps 3000
    """
    from ..training_progress import run_training

    record = run_training(out, seed=seed, steps=steps, threads=threads)
    last = record["curve"][-1] if record["curve"] else {}
    print(f"{out}: {record['parameters']:,} parameters, {record['train_tokens']:,} training tokens")
    if last:
        print(f"held-out loss {last['held_out_loss']:.3f} nats a token after {last['step']} steps")


def init(
    out: Annotated[Path, typer.Argument(help="Folder to write the model into.")],
    layers: Annotated[int, typer.Option(min=1, help="Layers, all with experts.")] = 4,
    hidden: Annotated[int, typer.Option(min=8, help="Hidden width.")] = 192,
    experts: Annotated[int, typer.Option(min=1, help="Experts of a layer.")] = 16,
    experts_per_token: Annotated[int, typer.Option(min=1, help="Experts a token uses.")] = 2,
    expert_hidden: Annotated[int, typer.Option(min=4, help="Hidden width of an expert.")] = 64,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 6,
    kv_heads: Annotated[int, typer.Option(min=1, help="Heads of keys and values.")] = 2,
    head_dim: Annotated[int, typer.Option(min=4, help="Width of a head.")] = 32,
    context: Annotated[str, typer.Option(help="Context in tokens, such as 4096 or 1Mi.")] = "4096",
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 7,
    shard: Annotated[str, typer.Option(help="Largest weight file, such as 2GiB.")] = "2GiB",
) -> None:
    """Write a Qwen3-MoE model with random weights, of any size, for load tests.

    The weights are drawn and written piece by piece: memory stays small whatever the size. The
    vocabulary is the demo tokenizer's.

    \b
    Examples:
      moectl model init ./random
      moectl model init ./big --layers 24 --hidden 1024 --experts 64 --expert-hidden 512 --heads 16
    """
    from ...core.errors import UsageError
    from ...core.units import format_bytes, parse_bytes, parse_count
    from ..progress import open_progress
    from ..train.random_model import RandomModel, write_random_model

    try:
        context_tokens, shard_bytes = parse_count(context), parse_bytes(shard)
    except ValueError as error:
        raise UsageError(str(error)) from error
    shape = RandomModel(
        layers=layers,
        hidden=hidden,
        experts=experts,
        experts_per_token=experts_per_token,
        expert_hidden=expert_hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context_tokens=context_tokens,
        seed=seed,
    )
    with open_progress() as progress:

        def tell(done: int, total: int) -> None:
            progress.start("weights", f"{10 * (10 * done // total)} % of {format_bytes(total)}")

        total = write_random_model(out, shape, shard_bytes=shard_bytes, report=tell)
        progress.end("weights", "ok", format_bytes(total))
    print(f"{out}: {shape.parameters:,} parameters, {format_bytes(total)}")


def facts(
    path: Annotated[
        str, typer.Argument(help="Checkpoint folder, config.json, model card or card name.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml.")] = "text",
) -> None:
    """Print what a model is in numbers: layers, parameters, experts, bytes of cache.

    A folder with weights is counted from its tensors too; a config.json or a card is enough for
    planning.

    \b
    Examples:
      moectl model facts clusters/models/demo
      moectl model facts deepseek-v3
      moectl model facts ./config.json -o json
    """
    from ...core.errors import UsageError
    from ..model_numbers import number_lines, numbers
    from ..render import print_data

    if output not in ("text", "json", "yaml"):
        raise UsageError(f"-o {output}: not a format", next_step="use text, json or yaml")
    plain = numbers(path)
    if output == "text":
        print("\n".join(number_lines(plain)))
    else:
        print_data(plain, output)


def routing(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    tokens: Annotated[int, typer.Option(min=4096, help="Tokens of held-out text.")] = 16384,
) -> None:
    """Print how a model routes text of the standard library: skew, and what can be foreseen.

    \b
    Examples:
      moectl model routing clusters/models/demo
    """
    from ..train.routing import measure_routing

    print("layer  experts used  hottest/mean  by popularity  by the layer before")
    for row in measure_routing(folder, tokens):
        before = "-" if row.named_by_layer_before is None else f"{row.named_by_layer_before:.2f}"
        print(
            f"{row.layer:5}  {row.experts_used:12}  {row.hottest_over_mean:12.1f}"
            f"  {row.named_by_popularity:13.2f}  {before:>19}"
        )
