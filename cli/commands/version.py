"""`moectl version`: which moectl this is, and which fleet answers."""

from typing import Annotated

import typer


def version(
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Print the version of this command and of the fleet that it reaches.

    \b
    Examples:
      moectl version
      moectl version -o json
    """
    import platform

    from ... import __version__
    from ...core.errors import UsageError

    facts = {"moectl": __version__, "python": platform.python_version(), "fleet": _fleet_version()}
    if output == "json":
        import json

        print(json.dumps(facts, indent=2))
    elif output == "text":
        for name, value in facts.items():
            print(f"{name:8} {value or 'not running'}")
    else:
        raise UsageError(f"-o {output}: not a format", next_step="use text or json")


def _fleet_version() -> str | None:
    """The version that the controller of this home reports, or None when it does not answer."""
    from ...core.errors import MoectlError
    from ...core.paths import Home
    from ..contexts import chosen
    from ..instance import connect, load_instance

    home = Home.from_environment()
    try:
        if chosen(home) is None and load_instance(home) is None:
            return None
        with connect(home) as client:
            answer = client.get("version")
    except MoectlError:
        return None
    return str(answer.get("version") or answer.get("moectl") or "unknown")
