"""The curve of the full requests page: tokens a second over the last two minutes, drawn by
plotext.
"""

from textual_plotext import PlotextPlot

from .panels import Shown


class ThroughputPlot(PlotextPlot):
    """A curve that grows to the left."""

    can_focus = False

    def __init__(self) -> None:
        super().__init__(classes="plot")
        self._drawn: tuple[float, ...] | None = None

    def show(self, shown: Shown) -> None:
        """Draw the history of a snapshot, when it is new."""
        history = shown.rates.history
        if history == self._drawn:
            return
        self._drawn = history
        self.plt.clear_figure()
        self.plt.title("tokens a second")
        self.plt.xlabel("seconds ago")
        self.plt.ylim(0, max(1.0, max(history, default=1.0) * 1.1))
        ago = [index - len(history) + 1 for index in range(len(history))]
        if history:
            self.plt.plot(ago, list(history), marker="braille", color="blue")
        self.refresh()
