"""What does the feed tell the screen? Small messages, each a frozen fact."""

from collections.abc import Mapping
from typing import Any

from textual.message import Message

from ..fleet_view import FleetView


class FleetSeen(Message):
    """A new snapshot."""

    def __init__(self, fleet: FleetView) -> None:
        super().__init__()
        self.fleet = fleet


class FeedLost(Message):
    """The controller does not answer; what is shown is old until the next snapshot."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class PagesSeen(Message):
    """What the pages of the devices hold, by device; only asked for while that is shown."""

    def __init__(self, pages: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.pages = pages
