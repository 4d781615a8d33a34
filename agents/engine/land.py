"""How does a rank that stays take over requests of ranks that leave? On threads of its own.

Open from the end of its own PREPARE until RETIRE or FORFEIT. Per leaving rank there is one
connection and one thread; blocks are held and requests adopted on the engine's thread, between two
steps; bytes are copied here, from the leaving rank's pages inside a node and from the connection
between nodes. What a connection held and did not adopt is freed when it ends, however it ends.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ...core.errors import MoectlError, WorkerError
from ...core.plan import leaving_devices
from ...core.records import TransitionRecord
from ...memory.hmm.client import HmmClient
from ...memory.layout import KvLayout, kv_name
from ...memory.window import Window
from .claims import CLAIM_S
from .context import WorkerContext
from .engine import Engine, EngineRefused
from .kv import KvPool
from .move_wire import ANSWER_S, Meeting, MoveSocket, is_secret, read_secret, runs_of
from .request import Request
from .serve import DataServer
from .steps import StepLoop
from .submit import request_of

#: How long the engine may be in a step before it turns to us.
ENGINE_S = 10.0
#: How long a leaving rank may be silent between its last copy and the flip.
SILENT_S = 600.0

Still = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Ground:
    """What landing needs of its worker. `still` keeps blocks and pages where they are."""

    context: WorkerContext
    loop: StepLoop
    data: DataServer
    still: Still


class Landing:
    """Takes over requests of one transition. Opened and closed by the lifecycle's thread."""

    def __init__(self, ground: Ground, record: TransitionRecord) -> None:
        self._ground, self._record = ground, record
        self.leavers = leaving_devices(record.old, record.new)
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._guests: list[_Guest] = []
        self._is_closed = False

    def open(self) -> None:
        """Listen, and say where. Raises MoectlError when the meeting place cannot be reached."""
        context = self._ground.context
        self._listener = socket.create_server((context.launch.data_host, 0), backlog=16)
        host, port = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, name="land", daemon=True).start()
        meeting = Meeting(self._record.store_address, self._record.operation_id)
        meeting.publish(context.device, f"{host}:{port}")

    def close(self) -> None:
        """End every connection; what was held for requests that did not come is freed."""
        with self._lock:
            self._is_closed = True
            guests = list(self._guests)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # close alone does not wake accept
            self._listener.close()
        for guest in guests:
            guest.close()

    def _accept(self) -> None:
        listener = self._listener
        assert listener is not None
        for _ in range(2 * len(self.leavers)):  # as many as may ever come; a stranger costs one
            try:
                sock, _ = listener.accept()
            except OSError:  # closed
                return
            guest = _Guest(self._ground, MoveSocket(sock), len(self.leavers))
            with self._lock:
                if self._is_closed:
                    guest.close()
                    return
                self._guests.append(guest)
            threading.Thread(target=guest.serve, name="land", daemon=True).start()


class _Guest:
    """One leaving rank's connection, on a thread of its own."""

    def __init__(self, ground: Ground, sock: MoveSocket, leavers: int) -> None:
        self._ground, self._sock, self._leavers = ground, sock, leavers
        self._held: dict[str, tuple[int, ...]] = {}  # id -> blocks here
        self._seen_changes = 0
        self._coming: list[tuple[Request, int]] = []
        self._source: _Source | None = None
        self._kv: KvPool | None = None

    def serve(self) -> None:
        """Answer until the connection ends; then give back what was not adopted."""
        try:
            self._hello(self._sock.receive())
            self._sock.set_deadline(SILENT_S)
            while True:
                self._take(self._sock.receive())
        except (MoectlError, KeyError, TypeError, ValueError):
            pass  # the leaving rank is done, or died, or speaks nonsense: the same for us
        finally:
            self._sock.close()
            self._give_back()
            if self._source is not None:
                self._source.close()

    def close(self) -> None:
        """End the connection; from any thread."""
        self._sock.close()

    def _hello(self, message: dict[str, Any]) -> None:
        context = self._ground.context
        if not is_secret(message.get("secret"), read_secret(context.launch.secret_file)):
            raise WorkerError("a rank without the secret wants to hand over requests")
        if message["node"] == context.launch.node:
            self._source = _Source(context, str(message["device"]))
        room: dict[str, Any] = {}

        def look(engine: Engine) -> None:
            scheduler = engine.scheduler
            free = engine.blocks.free_count - scheduler.running_count - scheduler.waiting_count
            room["blocks"] = max(free, 0) // self._leavers
            room["lanes"] = scheduler.lanes_free // self._leavers
            room["queue"] = scheduler.queue_free // self._leavers
            self._kv = engine.kv

        self._ground.loop.ask(look, ENGINE_S)
        address = self._ground.data.address
        self._sock.send({"ok": True, "data_address": address, **room})

    def _take(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "hold":
                full = self._hold([(str(name), int(count)) for name, count in message["items"]])
                self._sock.send({"ok": True, "full": full})
            case "copy":
                self._sock.send({"ok": True, "lost": self._copy(message["items"])})
            case "drop":
                names = [str(name) for name in message["ids"]]
                for name in names:
                    self._held.pop(name, None)
                self._ground.loop.tell(lambda engine: _drop(engine, names))
            case "adopt":
                request = request_of(message["submit"], str(message["id"]))
                self._coming.append((request, int(message["computed"])))
            case "go":
                self._sock.send({"ok": True, "refused": self._adopt()})
            case other:
                raise WorkerError(f"unknown word {other!r} from a rank that leaves")

    def _hold(self, items: list[tuple[str, int]]) -> list[str]:
        full: list[str] = []

        def hold(engine: Engine) -> None:
            for name, count in items:
                if not engine.incoming.hold(name, count):
                    full.append(name)
                self._held[name] = engine.incoming.blocks_of(name)
            self._seen_changes = engine.incoming.changes

        self._ground.loop.ask(hold, ENGINE_S)
        return full

    def _copy(self, items: list[Any]) -> list[str]:
        """Copy what the items name; returns those for which no place is held here any more."""
        lost: list[str] = []
        for name, start, blocks in items:
            with self._ground.still():
                self._look_again()
                targets = self._held.get(str(name), ())[int(start) : int(start) + len(blocks)]
                is_lost = len(targets) < len(blocks)
                if is_lost:
                    lost.append(str(name))
                self._copy_blocks([int(block) for block in blocks], () if is_lost else targets)
        return lost

    def _copy_blocks(self, blocks: list[int], targets: tuple[int, ...]) -> None:
        assert self._kv is not None
        if self._source is not None:
            if targets:
                self._source.copy(blocks, targets, self._kv)
            return
        # The KV lock is held: a machine that vanished must not hold up a shrink for long.
        self._sock.set_deadline(ANSWER_S)
        try:
            if targets:
                self._sock.receive_blocks(self._kv, targets)
            else:
                self._sock.skip(len(blocks) * self._kv.block_bytes)
        finally:
            self._sock.set_deadline(SILENT_S)

    def _look_again(self) -> None:
        """Learn the blocks' numbers anew if a shrink has changed them."""
        engine = self._ground.loop.engine or self._ground.loop.coming
        if engine is None or engine.incoming.changes != self._seen_changes:
            self._hold([(name, 0) for name in self._held])

    def _adopt(self) -> list[list[str]]:
        coming, self._coming = self._coming, []
        refused: list[list[str]] = []
        adopted: list[str] = []

        def adopt(engine: Engine) -> None:
            for request, computed in coming:
                try:
                    self._ground.data.expect(request)
                    engine.adopt(request, computed)
                    adopted.append(request.id)
                except EngineRefused as error:
                    self._ground.data.expire(request.id)
                    self._ground.loop.accounts.close(request.id, time.monotonic())
                    refused.append([request.id, str(error)])

        # Begun before it is known whether the engine had time for it: it may turn to it later.
        timer = threading.Timer(CLAIM_S, self._expire, ([request.id for request, _ in coming],))
        timer.daemon = True
        timer.start()
        self._ground.loop.ask(adopt, ENGINE_S)
        for name in adopted:
            self._held.pop(name, None)
        return refused

    def _expire(self, names: list[str]) -> None:
        for name in names:
            if self._ground.data.expire(name):
                self._ground.loop.inbox.cancel(name)

    def _give_back(self) -> None:
        names = list(self._held)
        if names:
            self._ground.loop.tell(lambda engine: _drop(engine, names))


class _Source:
    """The KV pages of a leaving rank of this node, mapped read-only."""

    def __init__(self, context: WorkerContext, device: str) -> None:
        self._context = context
        self._hmm: HmmClient = context.connect(f"requests of {device}")
        self._device = device.rpartition("/")[2]
        self._layout = KvLayout(context.kv_block_bytes(), 1)
        self._window: Window | None = None

    def copy(self, blocks: list[int], targets: tuple[int, ...], kv: KvPool) -> None:
        """KV of the leaving rank's blocks into blocks of this rank."""
        window = self._mapped(max(blocks) + 1)
        size, at = self._layout.block_bytes, 0
        for first, count in runs_of(blocks):
            source = window.address + first * size
            for target, few in runs_of(targets[at : at + count]):
                place = kv.bytes_of(target, few)
                window.mapper.copy(place.data_ptr(), source, few * size)
                source += few * size
            at += count

    def close(self) -> None:
        """Unmap."""
        if self._window is not None:
            self._window.close()
        self._hmm.close()

    def _mapped(self, blocks: int) -> Window:
        """A window with at least so many blocks; KV may have grown since the last look."""
        if self._window is None or blocks > self._layout.block_count:
            self._map()
        if self._window is None or blocks > self._layout.block_count:
            raise WorkerError(f"KV block {blocks - 1} of {self._device} is not in its layout")
        return self._window

    def _map(self) -> None:
        plain = self._hmm.get_layout(kv_name(self._context.launch.model, self._device))
        if plain is None:
            raise WorkerError(f"the HMM knows no KV of {self._device}")
        layout = KvLayout.from_json(plain)
        if layout.block_bytes != self._context.kv_block_bytes():
            raise WorkerError(f"KV blocks of {self._device} have another size")
        if self._window is not None:
            self._window.close()
        handle = self._hmm.device(self._device)
        self._window = Window(handle, len(layout.pages) * handle.page_bytes, writable=False)
        self._window.map(0, layout.pages)
        self._layout = layout


def _drop(engine: Engine, names: list[str]) -> None:
    for name in names:
        engine.incoming.drop(name)


def still_of(room: Callable[[], Any]) -> Still:
    """`still` of the KV room that `room()` gives now; before there is one nothing can move."""

    def still() -> AbstractContextManager[Any]:
        found = room()
        return found.still() if found is not None else nullcontext()

    return still
