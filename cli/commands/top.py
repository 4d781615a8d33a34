"""`moectl top`: the fleet on one screen, live."""

from typing import Annotated

import typer


def top(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model to show first.")] = None,
) -> None:
    """Watch the fleet live: nodes, experts, memory, scaling phases, requests, events.

    Everything works from the keyboard; press ? for the keys and q to leave.

    \b
    Examples:
      moectl top
      moectl top --model chat
    """
    import sys

    from ...core.errors import UsageError
    from ..instance import connect

    if not sys.stdout.isatty():
        raise UsageError(
            "`moectl top` needs a terminal",
            next_step="`moectl status` and `moectl get ... --watch` work in pipes",
        )
    client = connect()
    client.fleet()  # a controller that does not answer is told now, not on a blank screen
    from ..tui.app import FleetApp
    from ..tui.feed import ApiFeed

    FleetApp(ApiFeed(client), model=model).run()
