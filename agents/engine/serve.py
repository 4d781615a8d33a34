"""How do gateways hand requests to a worker and get tokens back? By one message per step.

A client shows the fleet's secret first; a wrong one ends the connection. Requests are known inside
by the connection they came on, so that two gateways may use the same id. When a connection ends its
requests are cancelled: nobody reads their tokens.
"""

import hmac
import itertools
import socket
import threading
import time
from typing import Any

from ...core.errors import ProtocolError
from .claims import Claims, since
from .hub import Hub, Peer
from .inbox import Inbox
from .progress import EngineRefused
from .request import DoneOut, DoneReason, Request, StepResult, TokenOut
from .spent import Accounts
from .steps import StepLoop
from .submit import request_of, token_entry


class DataServer:
    """The data socket of one worker."""

    def __init__(self, host: str, secret: str, greeting: dict[str, Any], inbox: Inbox) -> None:
        self._secret, self._greeting, self._inbox = secret, greeting, inbox
        self._loop: StepLoop | None = None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._owners: dict[str, tuple[Peer, str]] = {}  # inner id -> whose, and its id there
        self._claimed: dict[str, str] = {}  # inner id of a claim -> inner id of what was claimed
        self._claims = Claims()
        listener = socket.create_server((host, 0), backlog=64)
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._hub = Hub("data", listener, self._on_message, self._on_close)

    def start(self, loop: StepLoop) -> None:
        """Begin to serve."""
        self._loop = loop
        self._hub.start()

    def publish(self, result: StepResult) -> None:
        """Send what a step produced, one message per connection. Called by the engine's thread."""
        messages: dict[Peer, dict[str, list[Any]]] = {}
        accounts, now = self._loop.accounts if self._loop else Accounts(), time.monotonic()
        with self._lock:
            for token in result.tokens:
                accounts.token(token.request_id, now)
                owner = self._owners.get(token.request_id)
                if owner is None:
                    self._claims.keep_token(token)
                else:
                    _add_token(messages, owner, token)
            for done in result.dones:
                spent = accounts.close(done.request_id, now)
                owner = self._owners.pop(done.request_id, None)
                if owner is None:
                    self._claims.keep_done(done, spent)
                else:
                    self._claimed.pop(_inner(*owner), None)
                    _add_done(messages, owner, done, spent)
        for peer, message in messages.items():
            self._hub.send(peer, message)

    def expect(self, request: Request) -> None:
        """A request that moved here begins to run; its gateway will claim it by its id."""
        with self._lock:
            self._claims.open(request.id, request.prompt_ids)
        if self._loop is not None:
            self._loop.accounts.arrive(request.id, time.monotonic(), is_moved=True)

    def expire(self, request_id: str) -> bool:
        """Stop waiting for a claim; True when nobody had come."""
        with self._lock:
            return self._claims.expire(request_id)

    def close(self) -> None:
        """Send what is queued and end."""
        self._hub.close()

    def _on_message(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer.data is None:
            self._hello(peer, message)
            return
        match message.get("op"):
            case "submit":
                self._submit(peer, message)
            case "cancel":
                inner = _inner(peer, str(message["id"]))
                self._inbox.cancel(self._claimed.pop(inner, inner))
            case "ping":  # answered by this thread whatever the engine does: the process runs
                self._hub.send(peer, {"pong": 1})
            case other:
                raise ProtocolError(f"unknown operation {str(other)[:40]!r}")

    def _hello(self, peer: Peer, message: dict[str, Any]) -> None:
        secret = message.get("secret")
        if message.get("hello") != 1 or not isinstance(secret, str):
            raise ProtocolError("the first message must be a hello")
        if not hmac.compare_digest(secret.encode(), self._secret.encode()):
            raise ProtocolError("a hello with a wrong secret")
        peer.data = next(self._numbers)
        epoch = self._loop.epoch if self._loop is not None else None
        rank = epoch.rank if epoch is not None else -1
        self._hub.send(peer, {"ok": True, "rank": rank, "answers_pings": True, **self._greeting})

    def _submit(self, peer: Peer, message: dict[str, Any]) -> None:
        outer = str(message["id"])
        inner = _inner(peer, outer)
        with self._lock:
            if inner in self._owners or inner in self._claimed:
                raise ProtocolError(f"request {outer} was submitted twice")
            if self._claim(inner, (peer, outer), message):
                return
            self._owners[inner] = (peer, outer)
        try:
            request = request_of(message, inner)
        except EngineRefused as error:
            self._refuse(inner, f"refused:{error}")
            return
        if self._loop is None or not self._loop.takes_requests:
            self._refuse(inner, DoneReason.MOVED)
            return
        self._loop.accounts.arrive(inner, time.monotonic())
        if not self._inbox.submit(request):
            self._loop.accounts.close(inner, time.monotonic())
            self._refuse(inner, "refused:queue full")

    def _claim(self, inner: str, owner: tuple[Peer, str], message: dict[str, Any]) -> bool:
        """Go on telling a request that moved here, if this submit is of one. Under the lock."""
        key = message.get("moved")
        found = self._claims.take(key, message["prompt"]) if isinstance(key, str) else None
        if found is None or not isinstance(key, str):
            return False
        messages: dict[Peer, dict[str, list[Any]]] = {
            owner[0]: {"tokens": [], "done": [], "continued": [owner[1]]}
        }
        missed = since(found, len(message.get("already", ())))
        for token in missed.tokens:
            _add_token(messages, owner, token)
        for done in missed.dones:
            _add_done(messages, owner, done, found.spent)
        if not missed.dones:
            self._owners[key] = owner
            self._claimed[inner] = key
        self._hub.send(owner[0], messages[owner[0]])
        return True

    def _refuse(self, inner: str, reason: str) -> None:
        with self._lock:
            owner = self._owners.pop(inner, None)
        if owner is not None:
            self._hub.send(owner[0], {"tokens": [], "done": [[owner[1], str(reason)]]})

    def _on_close(self, peer: Peer) -> None:
        with self._lock:
            inner = [name for name, owner in self._owners.items() if owner[0] is peer]
            for name in inner:
                del self._owners[name]
            gone = [name for name in self._claimed if name.startswith(f"{peer.data}/")]
            for name in gone:
                del self._claimed[name]
        for name in inner:
            self._inbox.cancel(name)


def _add_token(
    messages: dict[Peer, dict[str, list[Any]]], owner: tuple[Peer, str], token: TokenOut
) -> None:
    message = messages.setdefault(owner[0], {"tokens": [], "done": []})
    message["tokens"].append(token_entry(owner[1], token))


def _add_done(
    messages: dict[Peer, dict[str, list[Any]]],
    owner: tuple[Peer, str],
    done: DoneOut,
    spent: dict[str, float] | None,
) -> None:
    message = messages.setdefault(owner[0], {"tokens": [], "done": []})
    if spent is not None:
        message.setdefault("spent", []).append([owner[1], spent])
    message["done"].append([owner[1], str(done.reason)])


def _inner(peer: Peer, outer: str) -> str:
    return f"{peer.data}/{outer}"
