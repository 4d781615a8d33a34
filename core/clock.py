"""Where loops get the time from, so that the same loop runs on a wall clock and in a simulator.

Pure code takes `now` as an argument and never imports this file; shells take a `Clock`. `monotonic`
is for deadlines and intervals, `now` (seconds since the epoch) only for what people read.
"""

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Two readings and a wait."""

    def monotonic(self) -> float:
        """Seconds that never go back; the zero means nothing."""
        ...

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return `seconds` later."""
        ...


class SystemClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return `seconds` later."""
        await asyncio.sleep(max(0.0, seconds))


class SimClock:
    """Time that moves only when told; sleepers wake by deadline, then in order of arrival."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._time = start
        self._arrivals = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """Seconds since the zero of this clock."""
        return self._time

    def now(self) -> float:
        """The same reading: in a simulation nothing sets the wall clock."""
        return self._time

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has passed `seconds` from now; zero still yields to other tasks."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._time + seconds, next(self._arrivals), done))
        await done

    @property
    def sleeper_count(self) -> int:
        """How many tasks wait; cancelled ones do not count."""
        return sum(not done.done() for _, _, done in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking each sleeper at its own instant and letting it run there."""
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        end = self._time + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            wake_at, _, done = heapq.heappop(self._sleepers)
            if done.done():
                continue  # cancelled while asleep
            self._time = max(self._time, wake_at)
            done.set_result(None)
            await self._settle()
        self._time = end

    async def _settle(self) -> None:
        """Let every task that can run reach its next wait; 20 turns cover chains of callbacks."""
        for _ in range(20):
            await asyncio.sleep(0)
