"""How does an agent talk to one worker on its node? Calls with replies, and events, on one socket.

The worker is the server, so a new agent finds it where the old one left it. A broken connection is
opened again in the background; a call in flight at the break fails, because whether it arrived is
unknown, and its caller decides whether saying it again is safe.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import DeadlineError, ProtocolError, WorkerError
from ..core.paths import short_socket_path
from .wire import FRAME_BYTES_MAX, NOTHING, encode, read_message

log = logging.getLogger("moectl.agent.control")

CALL_S = 10.0  # a busy worker answers between two steps; steps take milliseconds
RETRY_S = 0.05
FIRST_S = 0.01  # a worker that was just forked listens within tens of milliseconds
CALLS_MAX = 64  # calls in flight at once; more means that the worker answers nothing

OnEvent = Callable[[dict[str, Any]], None]


class Control:
    """The connection to one worker's control socket. Use in one event loop."""

    def __init__(self, path: Path, on_event: OnEvent) -> None:
        self.connections = 0  # how often it was opened: a change means that events may be missed
        self._path = path
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._is_open = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and stay connected until `close`."""
        name = f"control {self._path.name}"
        self._task = asyncio.get_running_loop().create_task(self._run(), name=name)

    async def close(self) -> None:
        """Disconnect; calls in flight fail."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._disconnect()

    async def call(
        self,
        op: str,
        deadline_s: float = CALL_S,
        *,
        ready: Mapping[str, str] = NOTHING,
        **fields: Any,
    ) -> dict[str, Any]:
        """The reply to one request; raises WorkerError on a no or a break, DeadlineError.

        `ready` are fields that are JSON text already.
        """
        if len(self._calls) >= CALLS_MAX:
            raise WorkerError(f"{self._path.name}: {CALLS_MAX} calls are unanswered")
        number = next(self._numbers)
        try:
            async with asyncio.timeout(deadline_s):
                reply = await self._exchange(number, {"id": number, "op": op, **fields}, ready)
        except TimeoutError as error:
            raise DeadlineError(
                f"worker {self._path.name} did not answer {op!r} within {deadline_s:g} s"
            ) from error
        finally:
            _discard(self._calls.pop(number, None))
        if reply.get("ok") is not True:
            raise WorkerError(f"{op}: {reply.get('error', 'refused')}")
        return reply

    async def _exchange(
        self, number: int, message: dict[str, Any], ready: Mapping[str, str]
    ) -> dict[str, Any]:
        await self._is_open.wait()
        writer = self._writer
        if writer is None:
            raise WorkerError(f"{self._path.name}: the connection broke")
        reply = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(encode(message, ready))
            await writer.drain()
        except OSError as error:
            raise WorkerError(f"{self._path.name}: the connection broke: {error}") from error
        return await reply

    async def _run(self) -> None:
        while True:
            try:
                with short_socket_path(self._path) as short:
                    reader, self._writer = await asyncio.open_unix_connection(
                        short, limit=FRAME_BYTES_MAX
                    )
            except OSError:
                await asyncio.sleep(RETRY_S if self.connections else FIRST_S)
                continue
            self.connections += 1
            self._is_open.set()
            try:
                while True:
                    self._take(await read_message(reader))
            except (OSError, asyncio.IncompleteReadError):
                pass
            except ProtocolError as error:
                log.warning("worker %s: %s", self._path.name, error.message)
            finally:
                self._disconnect()
            await asyncio.sleep(RETRY_S)

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message)
            return
        number = message.get("id")
        reply = self._calls.get(number) if isinstance(number, int) else None
        if reply is not None and not reply.done():
            reply.set_result(message)

    def _disconnect(self) -> None:
        self._is_open.clear()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(WorkerError(f"{self._path.name}: the connection broke"))


def _discard(reply: asyncio.Future[dict[str, Any]] | None) -> None:
    """Let a reply that nobody waits for any more go without a complaint."""
    if reply is not None and not reply.cancel() and not reply.cancelled():
        reply.exception()
