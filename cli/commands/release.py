"""`moectl release`: give a field back to the owner that it was taken from."""

from typing import Annotated

import typer


def release(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    field: Annotated[str, typer.Argument(help="Path of the field in the spec.")] = (
        "parallelism.experts"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it; change nothing.")] = False,
) -> None:
    """Give a field taken with --take back to gitops or the autoscaler.

    Its value stays until its owner writes it again.

    \b
    Examples:
      moectl release chat
      moectl release chat parallelism.experts
    """
    from ..instance import connect

    with connect() as client:
        answer = client.post(f"models/{model}/release", {"field": field, "dry_run": dry_run})
    suffix = " (dry run)" if dry_run else ""
    print(f"model/{model} {field} belongs to {answer['owner']} again{suffix}")
