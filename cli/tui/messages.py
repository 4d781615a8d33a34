"""What does the feed tell the screen? Small messages, each a frozen fact."""

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
