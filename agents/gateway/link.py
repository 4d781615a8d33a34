"""How does the gateway talk to one worker? One TCP connection, all requests multiplexed on it.

The link connects, introduces itself, connects again after a break (with a growing pause) until it
is closed, and hands each token to the stream of its request. When the connection breaks every
stream ends with LOST at once: replay is somebody else's decision (`replay.py`). A worker that is
silent for several heartbeats (stopped, or its machine hangs: the kernel still answers for it)
counts as lost too. It never retries a submit.
"""

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.errors import ProtocolError
from ..wire import encode, read_message
from .stream import LOST, TokenStream

log = logging.getLogger("moectl.gateway.link")

CONNECT_S = 3.0  # connect and hello; loopback takes milliseconds
RETRY_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # the pause before each further attempt; the last stays
SEND_BYTES_MAX = 32 << 20  # unsent bytes held for a worker that does not read; beyond it: busy
PROMPT_IDS_MAX = 2 << 20  # about what fits one frame


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A ping every `period_s`; after `missed_max` periods without a word the worker is lost.

    Counted in periods, not in time: an event loop that was held up itself accuses nobody.
    """

    period_s: float = 1.0
    missed_max: int = 5


@dataclass(frozen=True, slots=True)
class Submission:
    """One generation as the worker is asked for it."""

    prompt: tuple[int, ...]
    max_tokens: int
    eos: tuple[int, ...]
    sampling: dict[str, Any]
    priority: int = 0

    def message(self, request_id: str, already: list[int], moved: str = "") -> dict[str, Any]:
        """The submit message; `already` are the tokens that the client has been given.

        `moved` is the key under which the worker runs it already; one that knows no such key takes
        the message as any other submit.
        """
        return {
            "op": "submit",
            "id": request_id,
            "prompt": list(self.prompt),
            "already": list(already),
            "max_tokens": self.max_tokens,
            "eos": list(self.eos),
            "sampling": self.sampling,
        } | {key: value for key, value in (("priority", self.priority), ("moved", moved)) if value}


class WorkerLink:
    """The connection to one worker's data socket at `address`."""

    def __init__(
        self,
        address: str,
        secret: str,
        *,
        tokens_max: int,
        on_change: Callable[[], None],
        heartbeat: Heartbeat,
    ) -> None:
        self.address = address
        self.context_tokens = 0  # told by the worker in its hello
        self.silences = 0  # times that the worker was given up for its silence
        self._heartbeat = heartbeat
        self._answers_pings = False
        self._heard = True  # since the last ping
        self._secret = secret
        self._tokens_max = tokens_max
        self._on_change = on_change  # called with nothing when the link comes up or goes down
        self._streams: dict[str, TokenStream] = {}
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._outbox_ready = asyncio.Event()
        self._connected = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether a submit can be sent now."""
        return self._connected

    @property
    def load(self) -> int:
        """Requests of this gateway that the worker holds."""
        return len(self._streams)

    def start(self) -> None:
        """Begin connecting, in the background."""
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"link {self.address}"
        )

    async def close(self) -> None:
        """Stop for good; every open stream ends with LOST."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop("closed")

    def submit(
        self, request_id: str, submission: Submission, already: list[int], moved: str = ""
    ) -> TokenStream | None:
        """Send a request, or claim one that moved there; None when the link is down or full."""
        if not self._connected or self._outbox_bytes > SEND_BYTES_MAX:
            return None
        frame = encode(submission.message(request_id, already, moved))
        stream = TokenStream(request_id, self._tokens_max)
        self._streams[request_id] = stream
        self._send(frame)
        return stream

    def cancel(self, stream: TokenStream) -> None:
        """Forget a request; the worker is told unless it already ended. Safe to call twice."""
        if self._streams.pop(stream.request_id, None) is not None and self._connected:
            self._send(encode({"op": "cancel", "id": stream.request_id}))

    def _send(self, frame: bytes) -> None:
        self._outbox.append(frame)
        self._outbox_bytes += len(frame)
        self._outbox_ready.set()

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(CONNECT_S):
                    reader, writer = await self._connect()
            except (OSError, ProtocolError, asyncio.IncompleteReadError, TimeoutError) as error:
                log.debug("worker %s: %s", self.address, error)
            else:
                attempt = 0
                await self._serve(reader, writer)
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        _notice_dead_machine(writer.get_extra_info("socket"))
        try:
            writer.write(encode({"hello": 1, "secret": self._secret}))
            reply = await read_message(reader)
            if reply.get("ok") is not True:
                raise ProtocolError(f"worker {self.address} refused the hello")
            self.context_tokens = int(reply.get("context_tokens", 0))
            self._answers_pings = reply.get("answers_pings") is True
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected = True
        self._on_change()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._write_all(writer))]
        if self._answers_pings:
            tasks.append(loop.create_task(self._watch_pulse(writer)))
        why = "connection ended"
        try:
            while True:
                message = await read_message(reader)
                self._heard = True
                self._dispatch(message)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            why = f"malformed message: {error}"
        finally:
            for task in tasks:
                task.cancel()
            writer.transport.abort()  # nothing unsent is of use to anybody
            self._drop(why)

    async def _write_all(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self._outbox_ready.wait()
                while self._outbox:
                    frame = self._outbox.popleft()
                    writer.write(frame)
                    await writer.drain()
                    self._outbox_bytes -= len(frame)
                self._outbox_ready.clear()
        writer.close()  # the reading side sees the end and drops the link

    async def _watch_pulse(self, writer: asyncio.StreamWriter) -> None:
        missed = 0
        ping = encode({"op": "ping"})
        while missed < self._heartbeat.missed_max:
            self._heard = False
            self._send(ping)
            await asyncio.sleep(self._heartbeat.period_s)
            missed = 0 if self._heard else missed + 1
        self.silences += 1
        log.warning("worker %s is silent: given up", self.address)
        writer.transport.abort()  # the reading side sees the end and drops the link

    def _dispatch(self, message: dict[str, Any]) -> None:
        for request_id in message.get("continued", ()):
            if request_id in self._streams:
                self._streams[request_id].is_continued = True
        for request_id, index, token, *likelihood in message.get("tokens", ()):
            stream = self._streams.get(request_id)
            told = likelihood[0] if likelihood and isinstance(likelihood[0], dict) else None
            if stream is not None and not stream.push(int(index), int(token), told):
                self.cancel(stream)
        for request_id, spent in message.get("spent", ()):
            stream = self._streams.get(request_id)
            if stream is not None and isinstance(spent, dict):
                stream.spent = spent
        for request_id, reason in message.get("done", ()):
            stream = self._streams.pop(request_id, None)
            if stream is not None:
                stream.finish(str(reason))

    def _drop(self, why: str) -> None:
        was_connected, self._connected = self._connected, False
        streams, self._streams = self._streams, {}
        self._outbox.clear()
        self._outbox_bytes = 0
        self._outbox_ready.clear()
        for stream in streams.values():
            stream.finish(LOST)
        if was_connected:
            log.info("worker %s: %s, %d requests to replay", self.address, why, len(streams))
            self._on_change()


def _notice_dead_machine(sock: socket.socket) -> None:
    """Let the kernel break a connection whose other machine is silent for about 11 seconds."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
