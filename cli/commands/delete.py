"""`moectl delete`: take a declaration away, and with it what it asked for."""

from typing import Annotated

import typer

KINDS = {"model": "Model", "models": "Model", "cluster": "Cluster", "clusters": "Cluster"}


def delete(
    kind: Annotated[str, typer.Argument(help="model or cluster.")],
    name: Annotated[str, typer.Argument(help="Its name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it; change nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is gone.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait, else exit 5.")] = 60.0,
) -> None:
    """Stop serving a model and give its memory back.

    \b
    Examples:
      moectl delete model chat
      moectl delete model chat --dry-run
    """
    from ...core.errors import UsageError
    from ..instance import connect

    if kind.lower() not in KINDS:
        raise UsageError(f"{kind!r} cannot be deleted", next_step="use model or cluster")
    wanted = KINDS[kind.lower()]
    with connect() as client:
        client.delete(f"specs/{wanted}/{name}", dry_run=str(dry_run).lower())
        print(f"{wanted.lower()}/{name} deleted{' (dry run)' if dry_run else ''}")
        if wait and not dry_run and wanted == "Model":
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
