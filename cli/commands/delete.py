"""`moectl delete`: take a declaration away, and with it what it asked for."""

from typing import Annotated

import typer

from ..completing import complete_model, one_of
from ..dry_run import DryRun, DryRunFlag

KINDS = {"model": "Model", "models": "Model", "cluster": "Cluster", "clusters": "Cluster"}


def delete(
    kind: Annotated[
        str,
        typer.Argument(help="model or cluster.", autocompletion=one_of("model", "cluster")),
    ],
    name: Annotated[str, typer.Argument(help="Its name.", autocompletion=complete_model)],
    dry_run: DryRunFlag = DryRun.NONE,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is gone.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait, else exit 5.")] = 60.0,
) -> None:
    """Stop serving a model and give its memory back.

    \b
    Examples:
      moectl delete model chat
      moectl delete model chat --dry-run=server
    """
    from ...core.errors import UsageError
    from ..dry_run import suffix, told
    from ..instance import connect

    if kind.lower() not in KINDS:
        raise UsageError(f"{kind!r} cannot be deleted", next_step="use model or cluster")
    wanted = KINDS[kind.lower()]
    if dry_run is DryRun.CLIENT:
        told(f"{wanted.lower()}/{name} would be deleted", None, "text")
        return
    is_rehearsal = dry_run is DryRun.SERVER
    with connect() as client:
        client.delete(f"specs/{wanted}/{name}", dry_run=str(is_rehearsal).lower())
        print(f"{wanted.lower()}/{name} deleted{suffix(dry_run)}")
        if wait and not is_rehearsal and wanted == "Model":
            _wait(client, name, timeout)


def _wait(client, name: str, timeout: float) -> None:  # type: ignore[no-untyped-def]
    import time

    from ...core.errors import DeadlineError

    end = time.monotonic() + timeout
    while client.fleet().model(name) is not None:
        if time.monotonic() > end:
            raise DeadlineError(
                f"model {name} still holds memory after {timeout:g} s",
                next_step=f"`moectl describe model {name}` says why",
            )
        time.sleep(0.2)
