"""How does a process prove that it is alive? A lease, kept alive in the background.

A lease never claims to live longer than the server can believe: it counts from the moment before a
renewal was sent, so `lost` is set here no later than the server lets the keys go (clocks running at
one speed). What it fenced must be given up when `lost` is set, whatever the network says.
"""

import asyncio
import contextlib
from typing import Protocol

from ..clock import Clock
from ..errors import LeaseLostError, StoreUnavailableError


class LeaseDriver(Protocol):
    """What a store lends to its leases."""

    async def renew(self, lease_id: int, timeout_s: float) -> float:
        """Renew once; returns the new time to live.

        Raises LeaseLostError, StoreUnavailableError.
        """
        ...

    async def revoke(self, lease_id: int) -> None:
        """End the lease and delete its keys; a lease that is gone already is no error."""
        ...

    def release(self) -> None:
        """Let go of what renewing holds open; nothing is renewed after this."""
        ...


class Lease:
    """A lease. `start()` renews it every third of its life until it is lost, stopped or revoked."""

    def __init__(
        self, lease_id: int, ttl_s: float, asked_at_s: float, clock: Clock, driver: LeaseDriver
    ) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.lost = asyncio.Event()
        self._valid_until_s = asked_at_s + ttl_s
        self._clock = clock
        self._driver = driver
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep the lease alive in the background. Can be called twice."""
        if self._task is None:
            self._task = asyncio.create_task(self.keep_alive(), name=f"lease-{self.id:x}")

    async def keep_alive(self) -> None:
        """Renew at a third of the time to live, sooner after a failure, until the lease is lost."""
        wait_s = self.ttl_s / 3
        try:
            while (left_s := self._valid_until_s - self._clock.monotonic()) > 0:
                await self._clock.sleep(min(wait_s, left_s))
                wait_s = self.ttl_s / 3 if await self._renew_once() else self.ttl_s / 10
        except LeaseLostError:
            pass
        finally:
            self.lost.set()  # also when cancelled: from here on nobody renews it
            self._driver.release()

    async def _renew_once(self) -> bool:
        asked_at_s = self._clock.monotonic()
        left_s = self._valid_until_s - asked_at_s
        if left_s <= 0:
            raise LeaseLostError(f"lease {self.id:x} was not renewed in {self.ttl_s} s")
        try:
            granted_s = await self._driver.renew(self.id, min(left_s, self.ttl_s / 3))
        except StoreUnavailableError:
            return False
        self._valid_until_s = asked_at_s + granted_s
        return True

    async def stop(self) -> None:
        """Stop renewing; the keys go when the server's time is over. Can be called twice."""
        self.lost.set()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def revoke(self) -> None:
        """Stop renewing and delete the keys now. Raises StoreUnavailableError."""
        await self.stop()
        await self._driver.revoke(self.id)
