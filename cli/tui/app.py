"""`moectl top`: the composition of the screen. Snapshots come in as messages, keys change what is
shown.

Nothing is computed here: pure modules make view models, panels draw them.
"""

import threading
from collections.abc import Mapping
from typing import Any

from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Grid, Horizontal, Vertical, VerticalScroll
from textual.widgets import ContentSwitcher, Footer, Static

from ..fleet_view import FleetView
from . import drawing
from .feed import Feed
from .help_screen import HelpScreen
from .messages import FeedLost, FleetSeen, PagesSeen
from .panels import (
    EventsPanel,
    ExpertsPanel,
    MemoryPanel,
    ModelsPanel,
    Panel,
    ScalingPanel,
    Shown,
    TrafficPanel,
)
from .rates import Rates, advance
from .rows import headline
from .throughput import ThroughputPlot

MAPS_MAX = 64  # devices whose pages are drawn; more than that nobody reads
MAPS_EVERY_S = 5.0  # agents tell them as often
RETRY_S = 0.2  # before the first picture of the fleet

PAGES = ("overview", "experts", "memory", "scaling", "requests", "events")


class FleetApp(App[None]):
    """The fleet on one screen."""

    CSS_PATH = "moectl.tcss"
    TITLE = "moectl"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [  # noqa: RUF012
        Binding("1", "page('overview')", "All", tooltip="everything on one page"),
        Binding("2", "page('experts')", "Experts", tooltip="which experts are hot, and where"),
        Binding("3", "page('memory')", "HBM", tooltip="what holds the memory of each device"),
        Binding("4", "page('scaling')", "Scaling", tooltip="changes, predicted against actual"),
        Binding("5", "page('requests')", "Requests", tooltip="throughput and queues"),
        Binding("6", "page('events')", "Events", tooltip="what happened, newest first"),
        Binding("c", "colour", "Colour", tooltip="colour experts by load or by rank"),
        Binding("m", "next_model", "Model", show=False, tooltip="focus on the next model"),
        Binding("space", "pause", "Pause", show=False, tooltip="hold the picture, or go on"),
        Binding("question_mark", "help", "Help", key_display="?", tooltip="this list"),
        Binding("q", "quit", "Quit", tooltip="leave; the fleet goes on"),
    ]

    def __init__(self, feed: Feed, *, model: str | None = None) -> None:
        super().__init__()
        self._feed = feed
        self._model = model
        self._fleet: FleetView | None = None
        self._rates = Rates()
        self._heat_mode = "load"
        self._lost = ""
        self._is_paused = False
        self._pages: Mapping[str, Mapping[str, Any]] = {}
        self._wants_pages, self._is_over = threading.Event(), threading.Event()

    def compose(self) -> ComposeResult:
        """A headline, one of six pages, the keys."""
        yield Static("connecting …", id="headline", markup=False)
        with ContentSwitcher(initial="overview", id="pages"):
            with Vertical(id="overview"):
                with Grid(id="grid"):
                    yield ModelsPanel(compact=True)
                    yield ExpertsPanel(compact=True)
                    yield MemoryPanel(compact=True)
                    yield ScalingPanel(compact=True)
                with Horizontal(id="bottom"):
                    yield TrafficPanel(compact=True)
                    yield EventsPanel(compact=True)
            with VerticalScroll(id="experts"):
                yield ExpertsPanel(compact=False)
            with VerticalScroll(id="memory"):
                yield MemoryPanel(compact=False)
            with VerticalScroll(id="scaling"):
                yield ScalingPanel(compact=False)
            with Vertical(id="requests"):
                yield TrafficPanel(compact=False)
                yield ThroughputPlot()
            with VerticalScroll(id="events"):
                yield EventsPanel(compact=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Start to listen."""
        threading.Thread(target=self._listen, name="feed", daemon=True).start()
        threading.Thread(target=self._ask_for_pages, name="pages", daemon=True).start()

    def on_unmount(self) -> None:
        """Stop to listen."""
        self._is_over.set()
        self._wants_pages.set()
        self._feed.close()

    def _listen(self) -> None:
        """In the feed's thread: hand snapshots over as messages."""
        self._feed.run(
            lambda fleet: self.post_message(FleetSeen(fleet)),
            lambda reason: self.post_message(FeedLost(reason)),
        )

    def _ask_for_pages(self) -> None:
        """In a thread: page maps are large, so they are asked for only while they are shown."""
        while not self._is_over.is_set():
            self._wants_pages.wait()
            nodes = self._fleet.nodes if self._fleet is not None else ()
            devices = [device.name for node in nodes for device in node.devices]
            seen: dict[str, Mapping[str, Any]] = {}
            for name in devices[:MAPS_MAX]:
                told = None if self._is_over.is_set() else self._feed.pages(name)
                if told is not None:
                    seen[name] = told
            if not self._is_over.is_set():
                self.post_message(PagesSeen(seen))
            self._is_over.wait(MAPS_EVERY_S if devices else RETRY_S)

    def on_pages_seen(self, message: PagesSeen) -> None:
        """New page maps."""
        if not self._is_paused:
            self._pages = message.pages
            self._show()

    def on_fleet_seen(self, message: FleetSeen) -> None:
        """A new picture."""
        self._lost = ""
        fleet = message.fleet
        if self._model is None or fleet.model(self._model) is None:
            self._model = fleet.models[0].name if fleet.models else None
        self._rates = advance(self._rates, fleet, self._model)
        if not self._is_paused:
            self._fleet = fleet
            self._show()

    def on_feed_lost(self, message: FeedLost) -> None:
        """What is shown is old from now on."""
        self._lost = message.reason
        self._show_headline()

    def action_page(self, page: str) -> None:
        """Show one of the pages."""
        self.query_one("#pages", ContentSwitcher).current = page
        if page == "memory":
            self._wants_pages.set()
        else:
            self._wants_pages.clear()
        self._show()

    def action_colour(self) -> None:
        """Change what the heat map's colours mean."""
        self._heat_mode = "rank" if self._heat_mode == "load" else "load"
        self._show()

    def action_next_model(self) -> None:
        """Focus on the next model; its rates begin anew."""
        names = [model.name for model in self._fleet.models] if self._fleet else []
        if self._model in names and len(names) > 1:
            self._model = names[(names.index(self._model) + 1) % len(names)]
            self._rates = Rates()
            self._show()

    def action_pause(self) -> None:
        """Hold the picture, or go on."""
        self._is_paused = not self._is_paused
        self._show_headline()

    def action_help(self) -> None:
        """Show the keys."""
        shown = [b for b in self.BINDINGS if isinstance(b, Binding)]
        self.push_screen(HelpScreen(shown))

    def _show(self) -> None:
        """Tell every panel of the page in front."""
        if self._fleet is None:
            return
        self._show_headline()
        shown = Shown(self._fleet, self._model, self._rates, self._heat_mode, self._pages)
        page = self.query_one(f"#{self.query_one('#pages', ContentSwitcher).current}")
        for panel in page.query(Panel):
            panel.show(shown)
        for plot in page.query(ThroughputPlot):
            plot.show(shown)

    def _show_headline(self) -> None:
        line = drawing.styled("moectl  ", "strong")
        if self._fleet is not None:
            line.append_text(drawing.styled(headline(self._fleet)))
        if self._lost:
            line.append_text(drawing.styled(f"  STALE: {self._lost}", "bad"))
        elif self._is_paused:
            line.append_text(drawing.styled("  PAUSED", "busy"))
        self.query_one("#headline", Static).update(line)
