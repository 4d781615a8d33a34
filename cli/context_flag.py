"""Where does `--context` come from? Every command has it, and `moectl` itself, as kubectl has.

Wrapped around the functions of all commands in one place, so that none can be forgotten (`model
init` has a --context of its own, in tokens, and asks no fleet). Commands that only ever act on
this machine refuse another fleet's name: `moectl down --context prod` must not end the fleet of
this home.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..core.errors import UsageError
from . import contexts
from .completing import complete_context

HERE_ONLY = frozenset({"up", "down", "demo", "doctor", "logs", "hmm"})
HELP = "Fleet to talk to; `moectl context list` shows them."
Flag = Annotated[
    str, typer.Option("--context", help=HELP, autocompletion=complete_context, metavar="NAME")
]


def add_to_all(app: typer.Typer) -> None:
    """Give every command of an app, and of the groups in it, the flag."""
    for command in app.registered_commands:
        if command.callback is not None and "context" not in command.callback.__annotations__:
            command.callback = _with_flag(command.callback, is_here_only=command.name in HERE_ONLY)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_to_all(group.typer_instance)


def _with_flag(function: Callable[..., Any], *, is_here_only: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def command(*arguments: Any, context: str = "", **options: Any) -> Any:
        contexts.choose(context)
        if is_here_only and contexts.named() not in ("", contexts.LOCAL):
            raise UsageError(
                "this command acts on the fleet of this home only",
                next_step=f"leave --context and {contexts.VARIABLE} away",
            )
        return function(*arguments, **options)

    given = inspect.signature(function)
    flag = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Flag)
    command.__signature__ = given.replace(  # type: ignore[attr-defined]
        parameters=[*given.parameters.values(), flag]
    )
    command.__annotations__ = {**function.__annotations__, "context": Flag}
    return command


def before_command(context: Flag = "") -> None:
    """The flag in front of the command: `moectl --context prod get models`."""
    contexts.choose(context)
