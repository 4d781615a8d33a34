"""Which keys are there? A page over the screen, made from the same bindings as the footer."""

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from . import palette


class HelpScreen(ModalScreen[None]):
    """All keys with what they do; any of the closing keys leaves it."""

    BINDINGS = [Binding("escape,question_mark,q", "dismiss", "Close")]  # noqa: RUF012

    def __init__(self, bindings: Sequence[Binding]) -> None:
        super().__init__()
        self._bindings_shown = tuple(bindings)

    def compose(self) -> ComposeResult:
        """One line a key."""
        text = Text()
        for binding in self._bindings_shown:
            key = binding.key_display or binding.key
            text.append(f"{key:>10}  ", palette.MEANINGS["strong"])
            text.append(f"{binding.tooltip or binding.description}\n", palette.MEANINGS[""])
        text.append("\n press ? or Esc to close", palette.MEANINGS["dim"])
        box = Vertical(Static(text, markup=False), id="help")
        box.border_title = "Keys"
        yield box
