"""How does a worker make sure that its memory outlives the HMM?

A `Keeper` holds one connection and one descriptor of its device, and waits. When the connection
ends, because the HMM was killed, it asks every RETRY_S whether a new one listens, and hands the
descriptor back: the new one then knows that the pages are alive, and its journal says whose they
are. Nothing that the worker has mapped is touched, and serving goes on meanwhile.

One thread, asleep in poll. It must never take part in a step.
"""

import logging
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from ...core.errors import MoectlError
from .client import HmmClient

log = logging.getLogger("moectl.memory.keeper")

RETRY_S = 0.1  # well within the time that a new HMM waits for its memory
DEADLINE_S = 5.0


class Keeper:
    """Hands a device's memory back to whichever HMM lives. `close` ends it."""

    def __init__(
        self,
        socket_path: str | Path,
        device: str,
        name: str,
        on_return: Callable[[bool], None] | None = None,
    ) -> None:
        self._path, self._device, self._name = Path(socket_path), device, f"{name} keeper"[:200]
        self._on_return = on_return  # told whether our descriptor was the one that was needed
        self._client = self._connect()
        self._fd = os.dup(self._client.device(device).fd)
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and give the descriptor up."""
        os.write(self._ended, b".")
        self._thread.join()
        for fd in (self._fd, self._end, self._ended):
            os.close(fd)

    def _connect(self) -> HmmClient:
        return HmmClient(self._path, self._name, DEADLINE_S)

    def _keep(self) -> None:
        client: HmmClient | None = self._client
        while client is not None:
            is_ended = self._wait(client.fileno())
            client.close()
            client = None if is_ended else self._return()

    def _return(self) -> HmmClient | None:
        """Find a new HMM and hand the memory back; None when closed meanwhile."""
        while not self._wait(-1, RETRY_S):
            try:
                client = self._connect()
            except MoectlError:
                continue
            try:
                adopted = client.offer(self._device, self._fd)
            except MoectlError as error:
                log.error("the HMM does not take the memory of %s: %s", self._device, error)
                adopted = False
            if self._on_return is not None:
                self._on_return(adopted)
            if client.fileno() >= 0:
                return client
        return None

    def _wait(self, fd: int, timeout_s: float | None = None) -> bool:
        """Until the connection ends or time is over; True when this keeper is to end."""
        poller = select.poll()
        poller.register(self._end, select.POLLIN)
        if fd >= 0:
            poller.register(fd, select.POLLIN)
        ready = poller.poll(None if timeout_s is None else timeout_s * 1000)
        return any(where == self._end for where, _ in ready)
