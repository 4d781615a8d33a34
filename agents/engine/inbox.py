"""How do requests reach the engine's thread? Through a bounded queue and one event descriptor.

Any thread puts; the engine's thread takes everything at once, and sleeps on `wake_fd` (with other
descriptors) when it has nothing to do.
"""

import contextlib
import os
import threading

from .request import Request


class Inbox:
    """Submits and cancels on their way to the engine."""

    def __init__(self, submits_max: int) -> None:
        self._submits_max = submits_max
        self._lock = threading.Lock()
        self._submits: list[Request] = []
        self._cancels: list[str] = []
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def submit(self, request: Request) -> bool:
        """Queue a request; False when the queue is full."""
        with self._lock:
            if len(self._submits) >= self._submits_max:
                return False
            self._submits.append(request)
        self.wake()
        return True

    def cancel(self, request_id: str) -> None:
        """Queue a cancellation; its number is bounded by the requests that were taken in."""
        with self._lock:
            self._cancels.append(request_id)
        self.wake()

    def take(self) -> tuple[list[Request], list[str]]:
        """Everything that is queued, and the queue is empty."""
        if not self._submits and not self._cancels:
            return [], []
        with self._lock:
            submits, self._submits = self._submits, []
            cancels, self._cancels = self._cancels, []
        return submits, cancels

    @property
    def is_empty(self) -> bool:
        """Whether no request waits to be taken."""
        return not self._submits

    def wake(self) -> None:
        """Wake the engine's thread; safe in a signal handler."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.wake_fd, 1)

    def drain(self) -> None:
        """Forget wake-ups that have been seen."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)
