"""`moectl logs`: what the processes of this machine's fleet wrote."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ...core.paths import Home

POLL_S = 0.2
TAIL_BYTES_MAX = 8 * 2**20  # how far back from the end lines are looked for


def logs(
    part: Annotated[
        str | None, typer.Argument(help="controller, agent-n1, n1/hmm, ...; none lists them.")
    ] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="From the end.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
) -> None:
    """Show the log of a process of the fleet in this home.

    \b
    Examples:
      moectl logs
      moectl logs controller
      moectl logs agent-n1 -f
    """
    from ...core.errors import UsageError
    from ...core.paths import Home

    files = log_files(Home.from_environment())
    if part is None:
        for name, path in files.items():
            print(f"{name:32} {path}")
        return
    if part not in files:
        raise UsageError(
            f"no log of {part!r}", next_step=f"there are: {', '.join(files) or 'none'}"
        )
    for line in _tail(files[part], lines):
        print(line)
    if follow:
        _follow(files[part])


def log_files(home: "Home") -> dict[str, Path]:
    """Every log of this home by the name that people type."""
    found = {path.stem: path for path in sorted(home.logs_dir.glob("*.log"))}
    for node in sorted(home.nodes_dir.glob("*")) if home.nodes_dir.is_dir() else []:
        logs_dir = home.node(node.name).logs_dir
        found |= {f"{node.name}/{path.stem}": path for path in sorted(logs_dir.glob("*.log"))}
    return found


def _tail(path: Path, lines: int) -> Iterator[str]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES_MAX))
        text = file.read().decode(errors="replace")
    yield from text.splitlines()[-lines:] if lines else ()


def _follow(path: Path) -> None:
    """Print what is added until interrupted; a file that was made anew is read from its start."""
    with path.open("r", encoding="utf-8", errors="replace") as file:
        file.seek(0, 2)
        while True:
            piece = file.read()
            if piece:
                print(piece, end="", flush=True)
            elif path.exists() and path.stat().st_size < file.tell():
                file.seek(0)
            else:
                time.sleep(POLL_S)
