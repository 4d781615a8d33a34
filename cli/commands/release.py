"""`moectl release`: give a field back to the owner that it was taken from."""

from typing import Annotated

import typer

from ..completing import complete_model
from ..dry_run import DryRun, DryRunFlag


def release(
    model: Annotated[str, typer.Argument(help="Name of the model.", autocompletion=complete_model)],
    field: Annotated[str, typer.Argument(help="Path of the field in the spec.")] = (
        "parallelism.experts"
    ),
    dry_run: DryRunFlag = DryRun.NONE,
) -> None:
    """Give a field taken with --take back to gitops or the autoscaler.

    Its value stays until its owner writes it again.

    \b
    Examples:
      moectl release chat
      moectl release chat parallelism.experts
    """
    from ..dry_run import suffix, told
    from ..instance import connect

    if dry_run is DryRun.CLIENT:
        told(f"model/{model} {field} would be given back", None, "text")
        return
    with connect() as client:
        body = {"field": field, "dry_run": dry_run is DryRun.SERVER}
        answer = client.post(f"models/{model}/release", body)
    print(f"model/{model} {field} belongs to {answer['owner']} again{suffix(dry_run)}")
