"""Where do snapshots come from? The API's watch, taken up again whenever it breaks off.

Runs in a thread of the app, because the client is synchronous; hands over frozen snapshots only.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ...core.errors import MoectlError
from ..client import ApiClient
from ..fleet_view import FleetView

RETRY_S = (0.5, 1.0, 2.0, 5.0)  # an outage of a controller is seconds; then do not hammer


class Feed(Protocol):
    """A source of snapshots."""

    def run(self, seen: Callable[[FleetView], object], lost: Callable[[str], object]) -> None:
        """Call `seen` for each snapshot and `lost` for each break, until `close`."""

    def pages(self, device: str) -> Mapping[str, Any] | None:
        """What the pages of NODE/DEVICE hold; None while that is not known. From any thread."""

    def close(self) -> None:
        """End `run` soon."""


class ApiFeed:
    """The real one."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._closed = threading.Event()

    def run(self, seen: Callable[[FleetView], object], lost: Callable[[str], object]) -> None:
        """Watch until closed."""
        failures = 0
        while not self._closed.is_set():
            try:
                for fleet in self._until_closed():
                    failures = 0
                    seen(fleet)
                reason = "the watch ended"
            except MoectlError as error:
                reason = error.message
            if self._closed.is_set():
                return
            lost(reason)
            self._closed.wait(RETRY_S[min(failures, len(RETRY_S) - 1)])
            failures += 1

    def pages(self, device: str) -> Mapping[str, Any] | None:
        """Ask the API."""
        node, _, name = device.partition("/")
        try:
            told: Mapping[str, Any] = self._client.get(f"nodes/{node}/devices/{name}/pages")
        except MoectlError:  # not told yet, or the controller is away: the headline says that
            return None
        return told

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        self._client.close()

    def _until_closed(self) -> Iterator[FleetView]:
        for fleet in self._client.watch():
            if self._closed.is_set():
                return
            yield fleet


class FixedFeed:
    """Given snapshots, for tests and screenshots."""

    def __init__(
        self,
        fleets: Sequence[FleetView],
        pages: Callable[[str], Mapping[str, Any] | None] | None = None,
    ) -> None:
        self._fleets = tuple(fleets)
        self._pages = pages

    def run(self, seen: Callable[[FleetView], object], lost: Callable[[str], object]) -> None:
        """Hand all of them over and end."""
        for fleet in self._fleets:
            seen(fleet)

    def pages(self, device: str) -> Mapping[str, Any] | None:
        """What was given, if anything."""
        return self._pages(device) if self._pages is not None else None

    def close(self) -> None:
        """Nothing to end."""
