"""`moectl events`: what happened, oldest first."""

from typing import Annotated, Any

import typer


def events(
    subject: Annotated[
        str | None, typer.Argument(help="Such as model/chat or node/n1; all by default.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Then go on as they come.")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Show the event log of the last hour or two.

    With --watch none is lost and none is shown twice, also when the connection breaks.

    \b
    Examples:
      moectl events
      moectl events model/chat --watch
    """
    from ...core.errors import UsageError
    from ..instance import connect

    if output not in ("text", "json"):
        raise UsageError(f"-o {output}: not a format", next_step="use text or json")
    with connect() as client:
        found = client.watch_events(subject) if watch else client.get("events", subject=subject)
        for event in found:
            _print(event, output)


def _print(event: dict[str, Any], output: str) -> None:
    import json
    from datetime import datetime

    if output == "json":
        print(json.dumps(event), flush=True)
        return
    at = datetime.fromtimestamp(event["at"]).strftime("%H:%M:%S")
    words = f"{at}  {event['severity']:7}  {event['subject']}  {event['reason']}: "
    print(words + event["message"], flush=True)
