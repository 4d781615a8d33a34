"""What does a process hold that the HMM gave it? Channels and reservations.

A reservation is a promise: fill its pages, then commit; leaving the `with` block forfeits. It
outlives the HMM that made it: a new one knows the promise from its journal.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from ...core.errors import DeadlineError, MemoryPoolError


class Caller(Protocol):
    """The connection that a reservation belongs to."""

    @property
    def is_lost(self) -> bool:
        """Whether it broke."""
        ...

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its reply."""
        ...

    def resume(self, number: int) -> str:
        """Find a new HMM; "open", "committed" or "gone"."""
        ...


@dataclass(frozen=True, slots=True)
class ChannelHandle:
    """Shared memory and doorbells of the ranks of one node.

    `memfd` has `bytes` bytes; `eventfds[i][j]` is what rank i writes and rank j polls.
    """

    name: str
    memfd: int
    bytes: int
    eventfds: list[list[int]]

    def close(self) -> None:
        """Close this process's descriptors; mappings of the memory stay."""
        for fd in (self.memfd, *(fd for row in self.eventfds for fd in row)):
            with contextlib.suppress(OSError):
                os.close(fd)


class Reservation:
    """Pages promised by the HMM: fill them, then commit; leaving the `with` block forfeits."""

    def __init__(self, client: Caller, device: str, number: int, pages: Sequence[int]) -> None:
        self.device = device
        self.pages = tuple(pages)
        self._client = client
        self._number = number
        self._is_open = True

    def commit(self, layouts: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[int, ...]:
        """Make the pages the owner's, and put `layouts` (name -> plain data) with it."""
        request = {"op": "commit", "reservation": self._number, "layouts": dict(layouts or {})}
        self._settle(request, done="committed")
        self._is_open = False
        return self.pages

    def forfeit(self) -> None:
        """Give the pages back; nothing happens when that, or the commit, was done already."""
        if self._is_open:
            self._is_open = False
            self._settle({"op": "forfeit", "reservation": self._number}, done="gone")

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A dead connection has forfeited it already; the error in flight matters more.
        with contextlib.suppress(MemoryPoolError, DeadlineError):
            self.forfeit()

    def _settle(self, request: dict[str, Any], done: str) -> None:
        """Ask, and ask a new HMM again when the old one died: it knows what was promised."""
        try:
            self._client.call(request)
        except MemoryPoolError:
            if not self._client.is_lost:
                raise
            found = self._client.resume(self._number)
            if found == "open":
                self._client.call(request)
            elif found != done:
                raise
