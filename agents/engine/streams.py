"""How do two workers on different nodes open a plain byte stream? With a secret met in the store.

Each member of a meeting listens on its node's own address and publishes address and secret in the
meeting's TCPStore; of a pair, the higher rank connects and shows the secret. Whoever does not know
it is closed and forgotten: a stray or hostile connection costs a caller nothing but a moment.

Sockets stay blocking, with the kernel's own timeouts: one call moves a whole expert, so the
interpreter lock is taken once for megabytes and the engine's thread is not disturbed.
"""

import contextlib
import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable, Collection
from datetime import timedelta

from torch import distributed

from ...core.errors import ExchangeBrokenError
from .comm.gloo import Rendezvous

#: One of the two below.
Act = Callable[[socket.socket, memoryview], None]

_SECRET_BYTES = 32
_HELLO = struct.Struct(f"<{_SECRET_BYTES}sI")
#: A caller that says nothing keeps the others waiting no longer than this.
_HELLO_S = 2.0
#: How long a call may take, and how often one who waits for calls looks whether to go on.
_CONNECT_S, _LOOK_S = 5.0, 0.2
#: Callers waiting to be accepted; every member calls once.
_BACKLOG = 128


def open_streams(
    meeting: Rendezvous, peers: Collection[int], deadline_s: float
) -> dict[int, socket.socket]:
    """A connected socket to each peer, by rank. Raises ExchangeBrokenError when one is missing."""
    until = time.monotonic() + deadline_s
    streams: dict[int, socket.socket] = {}
    try:
        store = meeting.open_store(timedelta(seconds=deadline_s))
        secret = secrets.token_bytes(_SECRET_BYTES)
        with socket.create_server((meeting.bind_address, 0), backlog=_BACKLOG) as listener:
            host, port = listener.getsockname()[:2]
            store.set(f"stream/{meeting.rank}", f"{host} {port} {secret.hex()}")
            for peer in sorted(peer for peer in peers if peer < meeting.rank):
                streams[peer] = _call(store.get(f"stream/{peer}").decode(), meeting, until)
            awaited = {peer for peer in peers if peer > meeting.rank}
            while awaited:
                stream = _accept(listener, store, until)
                rank = _read_hello(stream, secret)
                if rank not in awaited:
                    stream.close()
                    continue
                awaited.remove(rank)
                streams[rank] = stream
        for stream in streams.values():
            _set_up(stream, deadline_s)
    except (OSError, RuntimeError, ValueError) as error:  # torch's store raises RuntimeError
        for stream in streams.values():
            stream.close()
        raise ExchangeBrokenError(
            f"rank {meeting.rank} of {meeting.size} could not meet ranks "
            f"{sorted(set(peers) - set(streams))} for {meeting.name!r}: {error}"
        ) from error
    return streams


def send_all(stream: socket.socket, data: memoryview) -> None:
    """Send every byte. Raises ExchangeBrokenError."""
    try:
        stream.sendall(data)
    except OSError as error:
        raise ExchangeBrokenError(str(error)) from error


def receive_all(stream: socket.socket, into: memoryview) -> None:
    """Fill `into`. Raises ExchangeBrokenError."""
    done = 0
    while done < len(into):
        try:
            count = stream.recv_into(into[done:], 0, socket.MSG_WAITALL)
        except OSError as error:
            raise ExchangeBrokenError(f"after {done} of {len(into)} B: {error}") from error
        if not count:
            raise ExchangeBrokenError(f"the peer closed after {done} of {len(into)} B")
        done += count


def shut(stream: socket.socket) -> None:
    """End every wait on a stream, here and at the peer; from any thread."""
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


def _call(published: str, meeting: Rendezvous, until: float) -> socket.socket:
    host, port, secret = published.split(" ")
    stream = socket.create_connection(
        (host, int(port)),
        min(_left(until), _CONNECT_S),
        source_address=(meeting.bind_address, 0),
    )
    try:
        stream.sendall(_HELLO.pack(bytes.fromhex(secret), meeting.rank))
    except BaseException:
        stream.close()
        raise
    return stream


def _accept(listener: socket.socket, store: distributed.PrefixStore, until: float) -> socket.socket:
    """The next caller. Ends soon after `abandon_meeting` has shut the store's connection."""
    while True:
        listener.settimeout(min(_left(until), _LOOK_S))
        try:
            return listener.accept()[0]
        except TimeoutError:
            store.check(["stream"])  # raises once the store is gone for us


def _read_hello(stream: socket.socket, secret: bytes) -> int:
    """The rank of a caller that knows the secret, else -1."""
    stream.settimeout(_HELLO_S)
    hello = bytearray()
    with contextlib.suppress(OSError):
        while len(hello) < _HELLO.size and (part := stream.recv(_HELLO.size - len(hello))):
            hello += part
    if len(hello) != _HELLO.size:
        return -1
    shown, rank = _HELLO.unpack(bytes(hello))
    return int(rank) if hmac.compare_digest(shown, secret) else -1


def _set_up(stream: socket.socket, deadline_s: float) -> None:
    stream.settimeout(None)
    seconds = struct.pack("ll", int(deadline_s) + 1, 0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        stream.setsockopt(socket.SOL_SOCKET, option, seconds)


def _left(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline passed")
    return left_s
