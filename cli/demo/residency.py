"""How many bytes of experts are physically there, at every instant? Asked from the HMM of every
node.

Ten times a second, from the processes that own the pages: what the controller publishes once a
second would miss the peak of a transition.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import MoectlError
from ...memory.hmm.client import HmmClient
from .metrics import Window

EVERY_S = 0.1

Usage = Sequence[dict[str, object]]  # the HMM's answer: one entry per device
Measure = Callable[[Usage], int]


@dataclass(frozen=True, slots=True)
class Sample:
    """Expert bytes of all devices together at one time."""

    at: float
    expert_bytes: int


class Residency:
    """Samples in a thread until `stop`; of experts, or of what `measure` finds in a usage."""

    def __init__(self, sockets: Sequence[Path], model: str, measure: Measure | None = None) -> None:
        self.samples: list[Sample] = []
        self._sockets = tuple(sockets)
        self._measure = measure or (lambda usage: expert_bytes(usage, f"{model}/experts"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="residency", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; waits for the thread."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(HmmClient(path, "demo")) for path in self._sockets]
            while not self._stop.wait(EVERY_S):
                try:
                    total = sum(self._measure(c.usage()) for c in clients)
                except MoectlError:
                    return  # a node ended: what was seen until now stands
                self.samples.append(Sample(time.time(), total))


def expert_bytes(usage: Sequence[dict[str, object]], owner: str) -> int:
    """Bytes that an owner holds on the devices of one node, by the HMM's `usage` answer."""
    total = 0
    for device in usage:
        used, page = device["used"], device["page_bytes"]
        if isinstance(used, dict) and isinstance(page, int):
            total += page * int(used.get(owner, 0))
    return total


def peak_ratio(samples: Sequence[Sample], window: Window) -> float:
    """Most expert bytes in a window over the larger of the layouts around it; 0.0 if unseen."""
    inside = [s.expert_bytes for s in samples if window.start <= s.at <= window.end]
    before = [s.expert_bytes for s in samples if s.at < window.start]
    after = [s.expert_bytes for s in samples if s.at > window.end]
    steady = max([*before[-1:], *after[:1]], default=0)
    return max([*inside, steady]) / steady if steady else 0.0
