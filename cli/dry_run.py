"""What does a dry run look like on the command line? `--dry-run=client`, `--dry-run=server`.

`client` reads and checks what is on this machine and asks nobody. `server` sends the request: it is
judged by the code that judges the real one, on the records of that moment, and nothing is written.
A bare `--dry-run` means `server`.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

BARE = "--dry-run"


class DryRun(StrEnum):
    """How far a dry run goes."""

    NONE = "none"
    CLIENT = "client"
    SERVER = "server"


HELP = "client: check here and ask nobody. server (also bare): judge it whole, write nothing."
DryRunFlag = Annotated[DryRun, typer.Option(BARE, help=HELP)]


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """The command line with a bare `--dry-run` written out; words after `--` are left alone."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [
        f"{BARE}={DryRun.SERVER}" if word == BARE and at < end else word
        for at, word in enumerate(arguments)
    ]


def suffix(dry_run: DryRun) -> str:
    """What stands behind a line that tells of nothing that happened."""
    return "" if dry_run is DryRun.NONE else f" ({dry_run} dry run)"


def told(action: str, body: Any, output: str) -> None:
    """Say what would be sent: a line, or the request itself as data."""
    from .render import print_data

    if output == "text":
        print(f"{action}{suffix(DryRun.CLIENT)}; the controller was not asked")
    else:
        print_data(body, output)
