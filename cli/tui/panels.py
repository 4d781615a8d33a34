"""The panels of the screen: each takes one snapshot and draws it; none of them knows where it is
from.

A panel redraws when it is told of a snapshot and when its size changes. What a panel shows is
decided in the pure modules beside this one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from textual.widgets import Static

from ..fleet_view import FleetView, ModelView
from . import drawing
from .bars import bars
from .heat import heat_map
from .page_cells import page_map
from .rates import Rates
from .rows import WORKER_TITLES, event_rows, model_line, worker_rows
from .timeline import newest_transition, timeline

HEAT_MARGIN = 9  # layer number before, imbalance after
TRANSITIONS_SHOWN = 8
FEW_DEVICES = 8  # up to so many have a larger map each
MAP_ROWS_FEW, MAP_ROWS_MANY = 6, 2


@dataclass(frozen=True, slots=True)
class Shown:
    """What all panels draw from."""

    fleet: FleetView
    model: str | None
    rates: Rates
    heat_mode: str
    pages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by device

    @property
    def view(self) -> ModelView | None:
        """The model in focus."""
        return self.fleet.model(self.model) if self.model else None


class Panel(Static):
    """A titled box that redraws itself from what it was last told."""

    can_focus = False
    TITLE = ""

    def __init__(self, *, compact: bool) -> None:
        super().__init__("", classes="panel", markup=False)
        self._compact = compact
        self._shown: Shown | None = None
        self.border_title = self.TITLE

    def show(self, shown: Shown) -> None:
        """Draw a snapshot."""
        self._shown = shown
        self._redraw()

    def on_resize(self) -> None:
        """Draw again: bars and maps are as wide as the panel."""
        self._redraw()

    def _redraw(self) -> None:
        if self._shown is not None and self.size.width > 0:
            self.update(self.draw(self._shown, self.size.width, self.size.height))

    def draw(self, shown: Shown, width: int, height: int) -> Text:
        """The content for a size."""
        raise NotImplementedError


class ModelsPanel(Panel):
    """Models in a line each, and the workers of the one in focus."""

    TITLE = "Models and workers"

    def draw(self, shown: Shown, width: int, height: int) -> Text:
        """Models, then workers."""
        if not shown.fleet.models:
            return drawing.styled("no model is declared: moectl apply -f FILE", "dim")
        found = []
        for model in shown.fleet.models:
            line = drawing.row_line(model_line(model))
            if model.name == shown.model and len(shown.fleet.models) > 1:
                line = Text("▸ ").append_text(line)
            found.append(line)
        workers = drawing.table(WORKER_TITLES, worker_rows(shown.view))
        return drawing.lines([*found, workers])


class ExpertsPanel(Panel):
    """The heat map."""

    TITLE = "Experts"

    def draw(self, shown: Shown, width: int, height: int) -> Text:
        """Layers by experts with a legend below."""
        room = max(1, width - HEAT_MARGIN)
        map_ = heat_map(shown.view, room)
        experts = max((len(row.cells) for row in map_.rows), default=1) if map_ else 1
        cell_columns = max(1, min(5, room // max(1, experts)))
        self.border_subtitle = f"by {shown.heat_mode}"
        body = drawing.heat(map_, shown.heat_mode, cell_columns)
        return drawing.lines([body, drawing.heat_legend(map_, shown.heat_mode)])


class MemoryPanel(Panel):
    """HBM bars; on the page of its own the map of every device's pages below."""

    TITLE = "HBM"

    def draw(self, shown: Shown, width: int, height: int) -> Text:
        """One bar a device; with room for it, the bytes of its parts."""
        found = bars(shown.fleet)
        if not found:
            return drawing.styled("no device has joined", "dim")
        label = max(len(bar.device) for bar in found)
        room = max(8, width - label - 7)
        has_room = not self._compact or height > 2 * len(found)
        texts: list[Text] = []
        for bar in found:
            texts.append(drawing.bar_line(bar, room, label))
            if has_room:
                texts.append(drawing.bar_numbers(bar))
        texts.append(drawing.memory_legend(found))
        if not self._compact:
            texts += self._maps(shown, [bar.device for bar in found], width)
        return drawing.lines(texts)

    def _maps(self, shown: Shown, devices: Sequence[str], width: int) -> list[Text]:
        rows = MAP_ROWS_MANY if len(devices) > FEW_DEVICES else MAP_ROWS_FEW
        texts: list[Text] = []
        for told in (shown.pages[device] for device in devices if device in shown.pages):
            texts += [Text(""), *drawing.page_map_lines(page_map(told, rows * width), width)]
        return texts


class ScalingPanel(Panel):
    """The running change, or the last one; the full page lists the ones before too."""

    TITLE = "Scaling"

    def draw(self, shown: Shown, width: int, height: int) -> Text:
        """Phases and figures."""
        self.border_subtitle = "predicted → actual"
        newest = newest_transition(shown.fleet, shown.model)
        if newest is None:
            return drawing.styled("nothing has changed yet", "dim")
        ordered = sorted(shown.fleet.transitions, key=lambda t: t.accepted_at, reverse=True)
        own = [
            t for t in ordered if t.model == shown.model and t.operation_id != newest.operation_id
        ]
        texts: list[Text] = []
        for transition in [newest, *own][:TRANSITIONS_SHOWN]:
            more = [*drawing.timeline_lines(timeline(transition, shown.fleet.at)), Text("")]
            if texts and self._compact and len(texts) + len(more) > height:
                break
            texts += more
        return drawing.lines(texts)


class TrafficPanel(Panel):
    """Requests and throughput."""

    TITLE = "Requests"

    def draw(self, shown: Shown, width: int, height: int) -> Text:
        """Rates and a curve of the last minutes."""
        return drawing.lines(drawing.traffic_lines(shown.rates, width if self._compact else 0))


class EventsPanel(Panel):
    """What happened, newest first."""

    TITLE = "Events"

    def draw(self, shown: Shown, width: int, height: int) -> Text:
        """As many as fit."""
        rows = event_rows(shown.fleet, max(1, height))
        if not rows:
            return drawing.styled("nothing yet", "dim")
        return drawing.lines([drawing.row_line(row) for row in rows])
