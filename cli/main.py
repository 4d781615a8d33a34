"""The entry of `moectl`: which commands exist, and how their errors become exit codes.

Imports must stay light, because `moectl --help` is the first thing a newcomer waits for: a command
module imports only the standard library, Typer and `core.errors` at its top, and whatever is heavy
(httpx, rich tables, pydantic, torch, Textual) inside the function that needs it. A test holds this.
"""

import sys

import typer

from ..core.errors import InvariantError, MoectlError
from . import exit_codes
from .commands import apply, chat, demo, doctor, down, get, model, scale, status, top, up, version

HELP = """Serve Mixture-of-Experts models, and change the fleet while it serves.

A first tour: `moectl up`, `moectl chat`, `moectl scale chat --experts 4`, `moectl top`,
`moectl down`.
"""


def build_app() -> typer.Typer:
    """All commands on one Typer application."""
    app = typer.Typer(
        name="moectl",
        help=HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    local, fleet, look, other = "Local fleet", "Change", "Look", "More"
    app.command("up", rich_help_panel=local)(up.up)
    app.command("down", rich_help_panel=local)(down.down)
    app.command("demo", rich_help_panel=local)(demo.demo)
    app.command("doctor", rich_help_panel=local)(doctor.doctor)
    app.command("apply", rich_help_panel=fleet)(apply.apply)
    app.command("scale", rich_help_panel=fleet)(scale.scale)
    app.command("status", rich_help_panel=look)(status.status)
    app.command("get", rich_help_panel=look)(get.get)
    app.command("top", rich_help_panel=look)(top.top)
    app.command("chat", rich_help_panel=other)(chat.chat)
    app.add_typer(model.build_app(), name="model", rich_help_panel=other)
    app.command("version", rich_help_panel=other)(version.version)
    return app


def main() -> None:
    """Run the command line and end the process with the exit code of its outcome."""
    try:
        build_app()()
    except (MoectlError, InvariantError, KeyboardInterrupt) as error:
        sys.exit(exit_codes.report(error))


if __name__ == "__main__":
    main()
