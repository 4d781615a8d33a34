"""How does a request reach etcd within a deadline, and what does a failure mean?

Everything that is grpc's lives here: channels, states, status codes. Above this file there are only
our errors. Four rules:

- A request is handed to a channel only once that channel is connected. So a request that failed
  before was certainly not sent (StoreUnavailableError), and a write that failed after may have
  happened (StoreAmbiguousError). Only what is safe to send twice is sent twice.
- Every wait has an end. A server that accepts and never answers (a stopped process, a dead network)
  costs one deadline, then the next endpoint is tried.
- TLS, mutual TLS and etcd's user are settings of `security`; a token that etcd finds too old is
  asked for again.
- Channels belong to the event loop of the first use, so a client can be built outside any loop.
"""

import asyncio
import contextlib
import time
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from ..errors import (
    MoectlError,
    StoreAmbiguousError,
    StoreError,
    StoreNoLeaderError,
    StoreUnavailableError,
)
from . import etcd_wire_pb2 as wire
from .etcd_failures import StaleTokenError, translate
from .etcd_messages import AUTHENTICATE, Method
from .security import EtcdSecurity, parse_endpoints

T = TypeVar("T")

RETRY_S = 0.1  # before a safe request is sent again, and before a broken stream is opened again
ANSWER_S = 0.5  # a write is sent with at least this much time left for its answer
CONNECT_SLICE_S = 0.5  # how long one endpoint may take to connect before the next is tried
MESSAGE_BYTES_MAX = 256 * 1024 * 1024  # a page of a listing is at most 128 MiB of values

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also grpc's limit for one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 1000),  # etcd comes back in seconds: no long waits
    # Notice a frozen server under a quiet watch. etcd drops clients that ping more than each 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),  # a quiet watch sends no data at all
    ("grpc.enable_http_proxy", 0),  # the store is never behind a web proxy
    ("grpc.enable_retries", 0),  # what is sent again is decided here
    ("grpc.use_local_subchannel_pool", 1),  # two stores in a process share no connection
)


class Connection:
    """The way to a set of endpoints, of which one is used at a time."""

    def __init__(
        self, endpoints: Sequence[str], deadline_s: float, security: EtcdSecurity | None = None
    ) -> None:
        self.deadline_s = deadline_s
        self._security = security or EtcdSecurity()
        self._endpoints = parse_endpoints(endpoints, self._security)
        self._targets = tuple(endpoint.address for endpoint in self._endpoints)
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._current = 0
        self._token = ""  # of etcd's user; it ends after minutes, and then another is asked for
        self._closed = False

    async def read(self, method: Method, request: Any) -> Any:
        """Send a request that may be sent twice, again and again until the deadline."""
        end_s = time.monotonic() + self.deadline_s
        while True:
            # With more than one endpoint, a frozen one must leave time to ask another.
            share_s = self.deadline_s / min(2, len(self._targets))
            try:
                return await self._call(method, request, min(end_s, time.monotonic() + share_s))
            except StoreUnavailableError:
                if time.monotonic() + RETRY_S >= end_s:
                    raise
            await asyncio.sleep(RETRY_S)

    async def write(self, method: Method, request: Any) -> Any:
        """Send a request that must not be sent twice, once; again only after a sure refusal.

        Raises StoreUnavailableError (did not happen) or StoreAmbiguousError (may have happened).
        """
        end_s = time.monotonic() + self.deadline_s
        # Sent with no time left it would end in doubt, where a refusal before it was certain.
        send_by_s = end_s - min(ANSWER_S, self.deadline_s / 2)
        while True:
            await self._ready(send_by_s)
            try:
                return await self._call(method, request, end_s)
            except StoreNoLeaderError:
                if time.monotonic() + RETRY_S >= send_by_s:
                    raise
                await asyncio.sleep(RETRY_S)
            except StoreUnavailableError as error:
                raise StoreAmbiguousError(
                    f"{error.message}: the write may have happened",
                    next_step="read it back; do not send it again",
                ) from error

    async def _ready(self, end_s: float) -> tuple[int, grpc.aio.Channel]:
        """A connected channel, and a token if etcd wants a user."""
        if self._security.user and not self._token:
            await self._authenticate(end_s)
        return await self._connected(end_s)

    async def _authenticate(self, end_s: float) -> None:
        """Ask for a token; another endpoint is asked when one gives no answer in its share."""
        request = wire.AuthenticateRequest(
            name=self._security.user, password=self._security.password()
        )
        while True:
            share_s = self.deadline_s / min(2, len(self._targets))
            until_s = min(end_s, time.monotonic() + share_s)
            try:
                self._token = (await self._send(AUTHENTICATE, request, until_s)).token
                return
            except StoreUnavailableError:
                if time.monotonic() + RETRY_S >= end_s:
                    raise
            await asyncio.sleep(RETRY_S)

    def forget_token(self) -> bool:
        """Take another token for the next request; False when no user is configured."""
        self._token = ""
        return bool(self._security.user)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        # A member that lost its leader refuses at once instead of keeping us in the dark, and so a
        # write that it refuses is known not to have happened.
        token = (("token", self._token),) if self._token else ()
        return (("hasleader", "true"), *token)

    async def _call(self, method: Method, request: Any, end_s: float) -> Any:
        await self._ready(end_s)
        try:
            return await self._send(method, request, end_s)
        except StaleTokenError:  # refused before anything ran: once more with a new token
            if not self.forget_token():
                raise
        await self._authenticate(end_s)
        return await self._send(method, request, end_s)

    async def _send(self, method: Method, request: Any, end_s: float) -> Any:
        index, channel = await self._connected(end_s)
        call = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        timeout_s = max(0.001, end_s - time.monotonic())
        try:
            return await self._unless_closed(
                call(request, timeout=timeout_s, metadata=self._metadata())
            )
        except grpc.aio.AioRpcError as error:
            raise self.translate(error, index, method) from error

    async def open_stream(self, method: Method) -> "Stream":
        """A stream in both directions, on a connected channel."""
        index, channel = await self._ready(time.monotonic() + self.deadline_s)
        call = channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        stream = Stream(self, index, method, call(metadata=self._metadata()))
        self._streams.add(stream)
        return stream

    async def _connected(self, end_s: float) -> tuple[int, grpc.aio.Channel]:
        """The current endpoint, or the next that connects in time. Raises StoreUnavailableError."""
        while True:
            self._check_open()
            index, channel = self._current, self._channel(self._current)
            state = channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return index, channel
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise StoreUnavailableError(
                    f"etcd at {', '.join(self._targets)}: no connection within {self.deadline_s} s",
                    next_step="check that etcd runs and that the endpoints are right",
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, CONNECT_SLICE_S)):
                    await self._unless_closed(channel.wait_for_state_change(state))
                    continue
            self.leave(index)

    def _channel(self, index: int) -> grpc.aio.Channel:
        if index not in self._channels:
            self._channels[index] = self._open_channel(index)
        return self._channels[index]

    def _open_channel(self, index: int) -> grpc.aio.Channel:
        target, security = self._targets[index], self._security
        if not self._endpoints[index].is_tls:
            return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        key, chain = security.own_certificate()
        credentials = grpc.ssl_channel_credentials(security.root_certificates(), key, chain)
        name = (("grpc.ssl_target_name_override", security.server_name),)
        options = CHANNEL_OPTIONS + (name if security.server_name else ())
        return grpc.aio.secure_channel(target, credentials, options=options)

    def leave(self, index: int) -> None:
        """Prefer the endpoint after this one, if this one is still the current."""
        if index == self._current:
            self._current = (index + 1) % len(self._targets)

    def translate(self, error: grpc.aio.AioRpcError, index: int, method: Method) -> MoectlError:
        """Our error for grpc's. Turns to the next endpoint when this one gave no answer."""
        ours = translate(error, f"etcd at {self._targets[index]}, {method.path}")
        if isinstance(ours, StoreUnavailableError):
            self.leave(index)
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and len(self._targets) > 1:
            self._break_streams(index)
        return ours

    def _break_streams(self, index: int) -> None:
        """A member that froze under a call froze under its watches too: open them elsewhere."""
        for stream in list(self._streams):
            if stream.index == index:
                stream.cancel()

    async def _unless_closed(self, work: Awaitable[T]) -> T:
        """Closing cancels grpc's calls: tell the waiting task so, instead of cancelling it."""
        try:
            return await work
        except asyncio.CancelledError:
            if self._closed and not _is_cancelling():
                self._check_open()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store was closed", next_step="use a new store")

    async def close(self) -> None:
        """End every call and every channel. Can be called twice."""
        self._closed = True
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


class Stream:
    """A stream of requests and answers. After any error it is over: open another."""

    def __init__(self, connection: Connection, index: int, method: Method, call: Any) -> None:
        self._connection = connection
        self.index = index
        self._method = method
        self._call = call

    async def send(self, request: Any) -> None:
        """Send one request within the deadline. Raises StoreUnavailableError."""
        await self._within(self._connection.deadline_s, self._call.write(request))

    async def receive(self, timeout_s: float | None) -> Any:
        """The next answer; None waits for ever, as a watch does. Raises StoreUnavailableError."""
        answer = await self._within(timeout_s, self._call.read())
        if answer is grpc.aio.EOF:
            await self._raise_end()
        return answer

    async def _within(self, timeout_s: float | None, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except grpc.aio.AioRpcError as error:
            raise self._connection.translate(error, self.index, self._method) from error
        except asyncio.InvalidStateError as error:  # grpc's word for writing to an ended stream
            raise self._no_answer("the stream has ended") from error
        except TimeoutError as error:
            raise self._no_answer(f"no answer within {timeout_s} s") from error
        except asyncio.CancelledError:
            if _is_cancelling():
                raise
            raise self._no_answer("the stream was cancelled") from None

    async def _raise_end(self) -> NoReturn:
        code = await self._call.code()
        raise self._no_answer(f"the stream ended ({code.name})")

    def _no_answer(self, what: str) -> StoreUnavailableError:
        self._connection.leave(self.index)
        self.cancel()
        return StoreUnavailableError(
            f"etcd, {self._method.path}: {what}", next_step="retry; check etcd if it lasts"
        )

    def cancel(self) -> None:
        """End the stream. Can be called twice."""
        self._call.cancel()


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
