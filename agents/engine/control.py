"""How does an agent steer a worker? By requests on a Unix socket that outlives any agent.

The worker is the server: whoever may open the socket (its directory is private, the peer's user is
checked) can ask, any number of times; events go to everyone connected. A request is answered at
once; what takes time ends with an event (lifecycle.py).

    status stats kv prepare commit retire forfeit peer_lost give_back leaving spawn_server stop
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import MoectlError, ProtocolError
from ...core.paths import short_socket_path
from ...core.records import TransitionRecord, from_plain
from ...memory.hmm.listener import peer_uid
from .founding import fork_server
from .hub import Hub, Peer
from .lifecycle import Lifecycle
from .steps import StepLoop

KV_REQUESTS_MAX = 256  # told to `moectl describe`; more would not be read

Report = Callable[[], dict[str, Any]]


class ControlServer:
    """The control socket of one worker."""

    def __init__(self, path: Path, loop: StepLoop, status: Report, stats: Report) -> None:
        self._loop, self._status, self._stats = loop, status, stats
        self._lifecycle: Lifecycle | None = None
        self._hub = Hub("control", _listen(path), self._on_message, lambda peer: None)

    def start(self, lifecycle: Lifecycle) -> None:
        """Begin to answer."""
        self._lifecycle = lifecycle
        self._hub.start()

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event to every agent that is connected."""
        self._hub.broadcast(event)

    def close(self) -> None:
        """Send what is queued and end."""
        self._hub.close()

    def _on_message(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer.data is None:
            peer.data = peer_uid(peer.sock)
        if peer.data not in (os.getuid(), 0):
            raise ProtocolError(f"user {peer.data} may not steer this worker")
        reply: dict[str, Any] = {"id": message.get("id"), "ok": True}
        try:
            reply |= self._answer(message)
        except MoectlError as error:
            reply |= {"ok": False, "error": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            reply |= {"ok": False, "error": f"malformed request: {error!r}"}
        self._hub.send(peer, reply)

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._lifecycle is not None
        match message.get("op"):
            case "status":
                return self._status()
            case "stats":
                return {"stats": self._stats(), "status": self._status()}
            case "kv":
                return {"requests": self._kv_by_request()}
            case "prepare":
                self._lifecycle.prepare(from_plain(TransitionRecord, message["transition"]))
            case "commit":
                self._lifecycle.commit(str(message["operation_id"]))
            case "retire":
                self._lifecycle.retire(str(message["operation_id"]))
            case "forfeit":
                self._lifecycle.forfeit(str(message["operation_id"]))
            case "peer_lost":
                self._lifecycle.peer_lost(int(message["epoch"]))
            case "give_back":
                self._lifecycle.give_back(int(message["pages"]))
            case "leaving":
                self._loop.is_leaving = bool(message["on"])
            case "spawn_server":
                path, log = Path(str(message["socket"])), Path(str(message["log"]))
                return {"pid": fork_server(self._loop, path, log)}
            case "stop":
                self._loop.stop()
            case other:
                raise ProtocolError(f"unknown operation {str(other)[:40]!r}")
        return {}

    def _kv_by_request(self) -> dict[str, list[int]]:
        """KV blocks by request, for people; bounded, and a step may change them meanwhile."""
        engine = self._loop.engine
        held = engine.scheduler.blocks_by_request() if engine is not None else {}
        return dict(list(held.items())[:KV_REQUESTS_MAX])


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a predecessor on this device: there is one worker at a time
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        with short_socket_path(path) as name:
            listener.bind(name)
    finally:
        os.umask(previous)
    listener.listen(16)
    return listener
