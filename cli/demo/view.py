"""How is the running demo shown? A live screen on a terminal, plain lines elsewhere, both on
stderr.

The view only reads: the conversations write into their `Speaker`s, the scenario tells stages and
phases. It is also a `Progress`, so that `up` reports into it.
"""

import sys
import time
from collections import deque
from typing import Any, Protocol, TextIO

from ..fleet_view import TransitionView
from ..progress import Progress
from .traffic import Speaker, Traffic

STAGES_SHOWN = 6
COLUMNS_OF_TEXT = 58


class DemoView(Progress, Protocol):
    """What the demo tells while it runs."""

    def __enter__(self) -> "DemoView": ...

    def stage(self, text: str) -> None:
        """The next act begins."""

    def phase(self, transition: TransitionView) -> None:
        """A transition was seen in some phase; called often with the same one."""

    def follow(self, traffic: Traffic) -> None:
        """From now on show these conversations."""

    def part_ended(self, role: str, outcome: str) -> None:
        """A part of the fleet was ended."""


class PlainView:
    """Lines with the seconds since the start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._shown: set[tuple[str, str]] = set()

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start(self, part: str, detail: str = "") -> None:
        """Only ends are told: starts would double the lines."""

    def end(self, part: str, outcome: str, detail: str = "") -> None:
        """A part of the fleet is up."""
        self._line(f"  {part} {'is up' if outcome == 'ok' else outcome}")

    def stage(self, text: str) -> None:
        """One line an act."""
        self._line(text)

    def phase(self, transition: TransitionView) -> None:
        """One line a phase."""
        key = (transition.operation_id, transition.phase)
        if key not in self._shown:
            self._shown.add(key)
            widths = f"{transition.from_width} -> {transition.to_width}"
            self._line(f"  {transition.kind} {widths}: {transition.phase.upper()}")

    def follow(self, traffic: Traffic) -> None:
        """Plain lines do not show conversations."""

    def part_ended(self, role: str, outcome: str) -> None:
        """Told when it could not be ended."""
        if outcome == "fail":
            self._line(f"  {role} could not be ended")

    def _line(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", file=self._stream, flush=True)


class LiveView:
    """The acts on top, the running phase, and every conversation as it streams."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._began = time.monotonic()
        self._stages: deque[tuple[float, str]] = deque(maxlen=STAGES_SHOWN)
        self._parts: dict[str, str] = {}
        self._transition: TransitionView | None = None
        self._traffic: Traffic | None = None
        # Four times a second: drawing must not take the cores from what is being shown.
        self._live = Live(
            get_renderable=self._draw, console=Console(file=stream), refresh_per_second=4
        )

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, part: str, detail: str = "") -> None:
        """A part of the fleet starts."""
        self._parts[part] = "…"

    def end(self, part: str, outcome: str, detail: str = "") -> None:
        """A part of the fleet is up, or failed."""
        self._parts[part] = "✓" if outcome == "ok" else "✗"

    def stage(self, text: str) -> None:
        """The next act."""
        self._stages.append((time.monotonic() - self._began, text))

    def phase(self, transition: TransitionView) -> None:
        """Remember the newest."""
        self._transition = transition

    def follow(self, traffic: Traffic) -> None:
        """Show these conversations from now on."""
        self._traffic = traffic

    def part_ended(self, role: str, outcome: str) -> None:
        """Show the part as ended."""
        self._parts[role] = "✗" if outcome == "fail" else "·"

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        lines: list[Any] = [Text(f"moectl demo  {time.monotonic() - self._began:5.1f} s", "bold")]
        lines.append(Text("  ".join(f"{mark} {part}" for part, mark in self._parts.items()), "dim"))
        for at, text in self._stages:
            lines.append(Text(f"{at:6.1f} s  {text}"))
        if self._transition is not None:
            lines.append(phase_bar(self._transition))
        if self._traffic is not None:
            lines.append(self._conversations(self._traffic.speakers))
        return Group(*lines)

    def _conversations(self, speakers: list[Speaker]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1), show_header=False)
        for speaker in speakers:
            tail = " ".join(speaker.tail.split())[-COLUMNS_OF_TEXT:]
            numbers = f"{speaker.tokens} tokens"
            notes = f"replayed {speaker.replays}x" if speaker.replays else ""
            if speaker.failures:
                notes += f" {speaker.failures} FAILED"
            table.add_row(
                Text(f"{speaker.index + 1}", "cyan"),
                Text(tail),
                Text(numbers, "dim"),
                Text(notes, "yellow"),
            )
        return table


def phase_bar(transition: TransitionView) -> Any:
    """The phases of a transition in one line, those behind it with their seconds."""
    from rich.text import Text

    widths = f"{transition.from_width} -> {transition.to_width}"
    line = Text(f"{transition.kind} {widths}  ", "bold")
    order = [phase for phase in ("prepare", "commit", "retire") if phase in transition.phase_at]
    ends = [*order[1:], "done"]
    for phase, following in zip(order, ends, strict=True):
        end = transition.phase_at.get(following)
        if end is None:
            line.append(f"[{phase.upper()}…] ", "yellow")
        else:
            line.append(f"{phase.upper()} {end - transition.phase_at[phase]:.2f} s  ", "green")
    if transition.phase in ("forfeit", "forfeited"):
        line.append(transition.phase.upper(), "red")
    return line


def open_view(stream: TextIO | None = None) -> DemoView:
    """The live screen when stderr is a terminal, plain lines otherwise."""
    out = stream or sys.stderr
    return LiveView(out) if out.isatty() else PlainView(out)
