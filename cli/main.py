"""The entry of `moectl`: which commands exist, and how their errors become exit codes.

Imports must stay light, because `moectl --help` is the first thing a newcomer waits for: a command
module imports only the standard library, Typer and `core.errors` at its top, and whatever is heavy
(httpx, rich tables, pydantic, torch, Textual) inside the function that needs it. A test holds this.
"""

import collections
import sys

import typer

from ..core.errors import InvariantError, MoectlError
from . import context_flag, dry_run, exit_codes
from .commands import (
    apply,
    balance,
    bench,
    calibrate,
    chat,
    context,
    delete,
    demo,
    describe,
    diff,
    doctor,
    down,
    events,
    explain,
    get,
    hmm,
    logs,
    model,
    plan,
    release,
    scale,
    status,
    token,
    top,
    trace,
    tune,
    up,
    version,
)

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
    app.command("plan", rich_help_panel=fleet)(plan.plan)
    app.command("balance", rich_help_panel=fleet)(balance.balance)
    app.command("calibrate", rich_help_panel=fleet)(calibrate.calibrate)
    app.command("tune", rich_help_panel=fleet)(tune.tune)
    app.command("diff", rich_help_panel=fleet)(diff.diff)
    app.command("delete", rich_help_panel=fleet)(delete.delete)
    app.command("release", rich_help_panel=fleet)(release.release)
    app.command("status", rich_help_panel=look)(status.status)
    app.command("get", rich_help_panel=look)(get.get)
    app.command("describe", rich_help_panel=look)(describe.describe)
    app.command("events", rich_help_panel=look)(events.events)
    app.command("logs", rich_help_panel=look)(logs.logs)
    app.command("explain", rich_help_panel=look)(explain.explain)
    app.command("top", rich_help_panel=look)(top.top)
    app.command("chat", rich_help_panel=other)(chat.chat)
    app.add_typer(model.build_app(), name="model", rich_help_panel=other)
    app.add_typer(trace.build_app(), name="trace", rich_help_panel=other)
    app.command("bench", rich_help_panel=other)(bench.bench)
    app.command("hmm", rich_help_panel=other)(hmm.hmm)
    app.add_typer(token.build_app(), name="token", rich_help_panel=other)
    app.add_typer(context.build_app(), name="context", rich_help_panel=other)
    app.command("version", rich_help_panel=other)(version.version)
    app.callback(help=HELP)(context_flag.before_command)
    context_flag.add_to_all(app)
    return app


def main() -> None:
    """Run the command line and end the process with the exit code of its outcome."""
    try:
        build_app()(dry_run.spelt_out(sys.argv[1:]))
    except (MoectlError, InvariantError, KeyboardInterrupt) as error:
        sys.exit(exit_codes.report(error))
    finally:
        # When a Ctrl-C hits code that is run from a string (as that of a dataclass is, at an
        # import), CPython remembers it and kills the process at its end, exit code 130 or not. The
        # next code from a string makes it forget: a named tuple's constructor is such.
        collections.namedtuple("Forget", ())


if __name__ == "__main__":
    main()
