"""How does a command tell what it is doing? A live list of parts on a terminal, plain lines
elsewhere.

Progress goes to stderr only: stdout carries data. Each part is told once it starts, whenever its
detail changes, and once it ends, with its seconds.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

MARKS = {"wait": "·", "run": "…", "ok": "✓", "fail": "✗", "skip": "-"}


class Progress(Protocol):
    """Where a long command reports its parts; a context manager."""

    def __enter__(self) -> "Progress": ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, part: str, detail: str = "") -> None:
        """A part begins, or its detail changed."""

    def end(self, part: str, outcome: str, detail: str = "") -> None:
        """A part ended: outcome is "ok", "fail" or "skip"."""


@dataclass(slots=True)
class PartState:
    """One line of the list."""

    outcome: str
    detail: str
    began_s: float
    seconds: float | None = None


class PlainProgress:
    """One line for each change, for logs and pipes."""

    def __init__(self, stream: TextIO, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._parts: dict[str, PartState] = {}

    def __enter__(self) -> "PlainProgress":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start(self, part: str, detail: str = "") -> None:
        """Print when the part is new or its detail changed."""
        state = self._parts.get(part)
        if state is None or state.seconds is not None:
            self._parts[part] = PartState("run", detail, self._monotonic())
        elif state.detail == detail:
            return
        else:
            state.detail = detail
        print(f"{MARKS['run']} {part}{_tail(detail)}", file=self._stream, flush=True)

    def end(self, part: str, outcome: str, detail: str = "") -> None:
        """Print the outcome with the part's seconds."""
        now = self._monotonic()
        state = self._parts.setdefault(part, PartState("run", "", now))
        state.seconds = now - state.began_s
        text = f"{MARKS[outcome]} {part}{_tail(detail)} ({state.seconds:.1f} s)"
        print(text, file=self._stream, flush=True)


class LiveProgress:
    """A list that redraws itself, with a spinner for what is running."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._parts: dict[str, PartState] = {}
        console = Console(file=stream)
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=8)

    def __enter__(self) -> "LiveProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, part: str, detail: str = "") -> None:
        """Add the part, or change its detail."""
        state = self._parts.get(part)
        if state is None or state.seconds is not None:
            self._parts[part] = PartState("run", detail, time.monotonic())
        else:
            state.detail = detail

    def end(self, part: str, outcome: str, detail: str = "") -> None:
        """Mark the part as ended."""
        state = self._parts.setdefault(part, PartState("run", "", time.monotonic()))
        state.outcome = outcome
        state.detail = detail or state.detail
        state.seconds = time.monotonic() - state.began_s

    def _table(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        colours = {"ok": "green", "fail": "red", "skip": "dim"}
        for name, part in self._parts.items():
            seconds = part.seconds
            shown = time.monotonic() - part.began_s if seconds is None else seconds
            mark: Any = Text(MARKS[part.outcome], style=colours.get(part.outcome, ""))
            if part.outcome == "run":
                mark = Spinner("dots", style="cyan")
            table.add_row(mark, name, Text(part.detail, style="dim"), f"{shown:.1f} s")
        return table


def open_progress(stream: TextIO | None = None) -> Progress:
    """The live list when stderr is a terminal, plain lines otherwise."""
    out = stream or sys.stderr
    return LiveProgress(out) if out.isatty() else PlainProgress(out)


def _tail(detail: str) -> str:
    return f": {detail}" if detail else ""
