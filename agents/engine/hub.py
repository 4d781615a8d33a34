"""How does a worker talk on its sockets without its engine ever waiting for one?

A `Hub` is one listener, one thread and one selector. It cuts streams into frames and hands messages
to `on_message`; `send` may be called from any thread and only queues. A peer that sends nonsense,
hoards unread answers or goes away costs its own connection and nothing else.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import MoectlError
from .frames import FrameReader, encode

#: Connections of one hub: gateways, agents and tools, with room.
PEERS_MAX = 256
#: Unread bytes held for one peer. Chosen: a gateway that stalls for seconds survives, a dead one
#: does not fill the memory.
OUTBOX_BYTES_MAX = 32 * 1024 * 1024
READ_BYTES = 256 * 1024


@dataclass(eq=False)
class Peer:
    """One connection; `data` belongs to whoever handles its messages."""

    sock: socket.socket
    reader: FrameReader = field(default_factory=FrameReader)
    outbox: deque[memoryview] = field(default_factory=deque)
    outbox_bytes: int = 0
    is_open: bool = True
    data: Any = None


OnMessage = Callable[[Peer, dict[str, Any]], None]
OnClose = Callable[[Peer], None]


class Hub:
    """Serves a listener on a thread of its own; `close` ends both."""

    def __init__(
        self, name: str, listener: socket.socket, on_message: OnMessage, on_close: OnClose
    ) -> None:
        self.name = name
        self._listener = listener
        self._on_message, self._on_close = on_message, on_close
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # guards peers and their outboxes
        self._peers: set[Peer] = set()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread.start()

    def send(self, peer: Peer, message: dict[str, Any]) -> None:
        """Queue a message for a peer; nothing happens when it is gone."""
        data = memoryview(encode(message))
        with self._lock:
            if not peer.is_open:
                return
            peer.outbox.append(data)
            peer.outbox_bytes += len(data)
        self._wake()

    def broadcast(self, message: dict[str, Any]) -> None:
        """Queue a message for every peer."""
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            self.send(peer, message)

    def close(self, linger_s: float = 1.0) -> None:
        """Send what is queued, for at most `linger_s`, and end."""
        self._stopping = True
        self._wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(linger_s)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        while not (self._stopping and not any(peer.outbox for peer in self._peers)):
            for key, mask in self._selector.select(1.0):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)
                else:
                    self._serve(key.data, mask)
            self._flush_all()
        for peer in list(self._peers):
            self._drop(peer, "")
        self._listener.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it is gone already, or descriptors ran out: the next one may do
            return
        if len(self._peers) >= PEERS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock)
        with self._lock:
            self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _serve(self, peer: Peer, mask: int) -> None:
        if not mask & selectors.EVENT_READ or not peer.is_open:
            return
        try:
            data = peer.sock.recv(READ_BYTES)
            if not data:
                self._drop(peer, "")
                return
            for message in peer.reader.feed(data):
                self._on_message(peer, message)
        except BlockingIOError:
            return
        except (MoectlError, OSError, KeyError, TypeError, ValueError) as error:
            self._drop(peer, f"{type(error).__name__}: {error}")

    def _flush_all(self) -> None:
        for peer in list(self._peers):
            try:
                self._flush(peer)
            except OSError as error:
                self._drop(peer, str(error))

    def _flush(self, peer: Peer) -> None:
        with self._lock:
            while peer.outbox:
                try:
                    sent = peer.sock.send(peer.outbox[0])
                except BlockingIOError:
                    break
                peer.outbox_bytes -= sent
                if sent == len(peer.outbox[0]):
                    peer.outbox.popleft()
                else:
                    peer.outbox[0] = peer.outbox[0][sent:]
            is_waiting, held = bool(peer.outbox), peer.outbox_bytes
        if held > OUTBOX_BYTES_MAX:
            raise OSError(f"{held} bytes unread")
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if is_waiting else 0)
        if peer.is_open and self._selector.get_key(peer.sock).events != events:
            self._selector.modify(peer.sock, events, peer)

    def _drop(self, peer: Peer, why: str) -> None:
        with self._lock:
            if not peer.is_open:
                return
            peer.is_open = False
            peer.outbox.clear()
            self._peers.discard(peer)
        self._selector.unregister(peer.sock)
        peer.sock.close()
        if why:
            print(f"{self.name}: dropped a peer: {why[:300]}", file=sys.stderr, flush=True)
        self._on_close(peer)
