"""How do gateways hand requests to a worker and get tokens back? One TCP socket, a message per step.

A client shows the fleet's secret first; a wrong one ends the connection. Requests are known inside
by the connection they came on, so that two gateways may use the same id. When a connection ends its
requests are cancelled: nobody reads their tokens.
"""

import hmac
import itertools
import socket
import threading
from typing import Any

from ...core.errors import ProtocolError
from .hub import Hub, Peer
from .inbox import Inbox
from .request import DoneReason, Request, Sampling, StepResult
from .steps import StepLoop

#: A request's id, as its gateway chose it.
ID_BYTES_MAX = 200


class DataServer:
    """The data socket of one worker."""

    def __init__(self, host: str, secret: str, greeting: dict[str, Any], inbox: Inbox) -> None:
        self._secret, self._greeting, self._inbox = secret, greeting, inbox
        self._loop: StepLoop | None = None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._owners: dict[str, tuple[Peer, str]] = {}  # inner id -> whose, and its id there
        listener = socket.create_server((host, 0), backlog=64)
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._hub = Hub("data", listener, self._on_message, self._on_close)

    def start(self, loop: StepLoop) -> None:
        """Begin to serve."""
        self._loop = loop
        self._hub.start()

    def publish(self, result: StepResult) -> None:
        """Send what a step produced, one message per connection. Called by the engine's thread."""
        messages: dict[Peer, dict[str, list[list[Any]]]] = {}
        with self._lock:
            for token in result.tokens:
                owner = self._owners.get(token.request_id)
                if owner is not None:
                    message = messages.setdefault(owner[0], {"tokens": [], "done": []})
                    message["tokens"].append([owner[1], token.index, token.token])
            for done in result.dones:
                owner = self._owners.pop(done.request_id, None)
                if owner is not None:
                    message = messages.setdefault(owner[0], {"tokens": [], "done": []})
                    message["done"].append([owner[1], str(done.reason)])
        for peer, message in messages.items():
            self._hub.send(peer, message)

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
                self._inbox.cancel(_inner(peer, str(message["id"])))
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
        self._hub.send(peer, {"ok": True, "rank": rank, **self._greeting})

    def _submit(self, peer: Peer, message: dict[str, Any]) -> None:
        request = _request(peer, message)
        outer = str(message["id"])
        with self._lock:
            if request.id in self._owners:
                raise ProtocolError(f"request {outer} was submitted twice")
            self._owners[request.id] = (peer, outer)
        if self._loop is None or not self._loop.takes_requests:
            self._refuse(request.id, DoneReason.MOVED)
        elif not self._inbox.submit(request):
            self._refuse(request.id, "refused:queue full")

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
        for name in inner:
            self._inbox.cancel(name)


def _inner(peer: Peer, outer: str) -> str:
    return f"{peer.data}/{outer}"


def _request(peer: Peer, message: dict[str, Any]) -> Request:
    """The request in a submit message. Raises KeyError, TypeError or ValueError on nonsense."""
    outer = message["id"]
    if not isinstance(outer, str) or not 1 <= len(outer) <= ID_BYTES_MAX:
        raise ValueError(f"a request's id has 1 to {ID_BYTES_MAX} characters")
    sampling = message.get("sampling") or {}
    return Request(
        id=_inner(peer, outer),
        prompt_ids=_ids(message["prompt"]),
        max_tokens=int(message["max_tokens"]),
        sampling=Sampling(
            temperature=float(sampling.get("temperature", 0.0)),
            top_p=float(sampling.get("top_p", 1.0)),
            top_k=int(sampling.get("top_k", 0)),
            seed=int(sampling.get("seed", 0)),
        ),
        eos_ids=_ids(message.get("eos", ())),
        already=_ids(message.get("already", ())),
    )


def _ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
        raise ValueError("token ids must be a list of integers")
    return tuple(values)
