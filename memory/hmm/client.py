"""How does a process of the node ask the HMM for pages, layouts and channels?

A synchronous client over one connection, safe to share between threads (one request at a time, each
with a deadline). Reservations belong to the connection: when this process dies, what was not
committed is free again. After a missed deadline or a malformed reply the stream cannot be trusted
and the client is closed; make a new one.

Descriptors that the HMM sends belong to this process. `DeviceHandle.fd` is kept by the client and
closed with it (mappings stay); a `ChannelHandle` is closed by whoever asked for it.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ...core.errors import DeadlineError, MemoryPoolError, ProtocolError
from ...core.paths import short_socket_path
from ..backend import DeviceHandle, PageMapper, PageRun, Shares, coalesce, expand
from . import wire
from .holds import ChannelHandle, Reservation
from .replies import raise_error

__all__ = ["ChannelHandle", "HmmClient", "Reservation"]

CONNECT_RETRY_S = 0.005  # the HMM empties its queue of connections in less
SHARES_AT_ONCE = 256  # descriptors that are open here for a moment
RESUME_RETRY_S = 0.05  # a new HMM is there within a second or two


class HmmClient:
    """One connection to the node's HMM.

    Raises MemoryPoolError when nobody answers at `socket_path`; every call raises the HMM's own
    typed error (PoolExhaustedError, MappingError, ProtocolError) or DeadlineError.
    """

    def __init__(self, socket_path: str | Path, name: str, deadline_s: float = 5.0) -> None:
        self._path = Path(socket_path)
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._devices: dict[str, DeviceHandle] = {}
        self._name = name
        self._sock: socket.socket | None = self._connect()
        self._is_closed, self._limit_s = False, 0.0  # by when the running call must have ended
        try:
            greeting = self.call({"op": "hello", "name": name})
        except BaseException:
            self.close()
            raise
        self.node = str(greeting.get("node", ""))
        self.hmm_pid = int(greeting.get("pid", 0))
        told = [tuple(map(str, greeting.get(key, ()))) for key in ("devices", "awaited")]
        self.device_ids, self.awaited = told  # of awaited ones no worker has handed memory back yet

    # Pages.

    def device(self, device_id: str) -> DeviceHandle:
        """The right to map a device's pages; the same handle at every call."""
        with self._exclusive():
            if device_id not in self._devices:
                reply, fds = self._exchange({"op": "device", "device": device_id})
                self._devices[device_id] = DeviceHandle(
                    device_id,
                    fds[0] if fds else -1,
                    int(reply["page_bytes"]),
                    int(reply["page_count"]),
                    str(reply["page_kind"]),
                    str(reply.get("kind", "cpu")),
                )
            return self._devices[device_id]

    def shares(self, device_id: str, run: PageRun, process: int) -> Shares:
        """What it takes to map these pages, for devices that share page by page."""
        request = {"op": "share", "device": device_id, "first": run.first, "count": run.count}
        with self._exclusive():
            reply, fds = self._exchange({**request, "process": process})
        return Shares(tuple(fds), tuple(int(value) for value in reply["values"]))

    def adopt(self, mapper: PageMapper, device_id: str, pages: Sequence[int]) -> None:
        """Let `mapper` map these pages of a device that shares them one by one; else nothing."""
        handle = self.device(device_id)
        if handle.fd >= 0:
            return
        for run in coalesce(tuple(pages)):
            for first in range(run.first, run.first + run.count, SHARES_AT_ONCE):
                count = min(SHARES_AT_ONCE, run.first + run.count - first)
                part = PageRun(first, count)
                mapper.adopt(handle, part, self.shares(device_id, part, mapper.process()))

    def reserve(
        self, device: str, pages: int, owner: str, share: Sequence[int] = ()
    ) -> Reservation:
        """Promise `pages` pages of a device to an owner such as "chat/experts".

        `share` are pages in use by others that this owner is to hold as well.
        """
        request = {"op": "reserve", "device": device, "pages": pages, "owner": owner}
        reply = self.call({**request, "share": _runs(share)} if share else request)
        return Reservation(self, device, int(reply["reservation"]), _expand(reply["pages"]))

    def free(
        self,
        device: str,
        pages: Sequence[int],
        owner: str,
        *,
        drop_layouts: Sequence[str] = (),
        layouts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> int:
        """End an owner's hold of pages, and in the same instant drop and put layouts.

        All or nothing; returns how many pages are free by that (others may share some).
        """
        request: dict[str, Any] = {"op": "free", "device": device, "pages": _runs(pages)}
        request["owner"] = owner
        request |= {"drop_layouts": list(drop_layouts), "layouts": dict(layouts or {})}
        return int(self.call(request)["freed"])

    def set_claims(
        self, device: str, claims: Mapping[str, tuple[int, float]], model: str = ""
    ) -> None:
        """Share a device out: party ("chat/kv") -> (guarantee in pages, weight).

        Replaces all claims, or those of one model.
        """
        request = {"op": "claims", "device": device, "claims": dict(claims)}
        self.call({**request, "model": model} if model else request)

    def ask_claims(self, device: str, claims: Mapping[str, tuple[int, float]]) -> None:
        """Count these claims while this connection lasts, beside those that are kept.

        Raises PoolExhaustedError when the guarantees do not fit beside those of others.
        """
        self.call({"op": "ask", "device": device, "claims": dict(claims)})

    def keep_claims(self, device: str) -> None:
        """Keep for good what this connection asked for, in place of the model's before."""
        self.call({"op": "keep_claims", "device": device})

    def room(self, device: str, owner: str) -> int:
        """Pages by which an owner's party may grow without taking more than its share."""
        return int(self.call({"op": "room", "device": device, "owner": owner})["pages"])

    def wanted(self, device: str) -> dict[str, int]:
        """party -> pages above its share that a model was refused for; told once."""
        return dict(self.call({"op": "wanted", "device": device})["wanted"])

    def rename_owner(self, device: str, pages: Sequence[int], old: str, new: str) -> None:
        """Hand pages from one owner to another."""
        request = {"op": "rename_owner", "device": device, "pages": _runs(pages)}
        self.call({**request, "old": old, "new": new})

    def pages_of(self, device: str, owner: str) -> tuple[int, ...]:
        """The committed pages of an owner, ascending: what its replacement adopts."""
        return _expand(self.call({"op": "pages_of", "device": device, "owner": owner})["pages"])

    def trim(self, device: str) -> int:
        """Give free pages' memory back; none is touched ahead until `pretouch`. Returns bytes."""
        return int(self.call({"op": "trim", "device": device})["bytes"])

    def pretouch(self, device: str, bytes: int | None = None) -> None:
        """Keep so many bytes of free pages touched ahead, in the background; None for all."""
        request: dict[str, Any] = {"op": "pretouch", "device": device}
        self.call(request if bytes is None else {**request, "bytes": bytes})

    # Layouts.

    def put_layout(self, name: str, layout: Mapping[str, Any]) -> None:
        """Keep plain data under a name, replacing what was there."""
        self.call({"op": "put_layout", "layouts": {name: dict(layout)}})

    def get_layout(self, name: str) -> dict[str, Any] | None:
        """The data under a name, or None."""
        layout = self.call({"op": "get_layout", "name": name})["layout"]
        return dict(layout) if layout is not None else None

    def drop_layout(self, name: str) -> None:
        """Forget a name; nothing happens when it is unknown."""
        self.call({"op": "drop_layout", "name": name})

    def layouts(self, prefix: str = "") -> list[str]:
        """Names that start with `prefix`, sorted."""
        return list(self.call({"op": "layouts", "prefix": prefix})["names"])

    # Channels.

    def channel(self, name: str, ranks: int, bytes_per_rank: int) -> ChannelHandle:
        """The channel of that name, made on the first call; everyone gets the same memory."""
        request = {"op": "channel", "name": name, "ranks": ranks, "bytes_per_rank": bytes_per_rank}
        with self._exclusive():
            reply, fds = self._exchange(request)
        rows = [fds[1 + row * ranks : 1 + (row + 1) * ranks] for row in range(ranks)]
        return ChannelHandle(name, fds[0], int(reply["bytes"]), rows)

    def drop_channel(self, name: str) -> None:
        """Forget a channel; those who hold it keep their descriptors."""
        self.call({"op": "drop_channel", "name": name})

    # After the HMM's death.

    def offer(self, device: str, fd: int) -> bool:
        """Hand a device's memory back to a new HMM; False when it has it already."""
        with self._exclusive():
            reply, _ = self._exchange({"op": "offer", "device": device}, (fd,))
        return bool(reply["adopted"])

    @property
    def is_lost(self) -> bool:
        """Whether the connection broke, and was not closed from this side."""
        return self._sock is None and not self._is_closed

    def resume(self, number: int) -> str:
        """Connect to a new HMM and take a reservation up again.

        "open": it is ours as before; "committed": that was done; "gone": nobody knows it. Raises
        MemoryPoolError when no HMM is there within the deadline.
        """
        limit_s = time.monotonic() + self._deadline_s
        while True:
            try:
                if self._sock is None:
                    self._sock = self._connect()
                    self.call({"op": "hello", "name": self._name})
                reply = self.call({"op": "resume", "reservations": [number]})
                if not reply["waiting"]:
                    break
            except MemoryPoolError:
                if time.monotonic() > limit_s:
                    raise
            time.sleep(RESUME_RETRY_S)
        is_open, is_committed = number in reply["resumed"], number in reply["committed"]
        return "open" if is_open else "committed" if is_committed else "gone"

    def recovery(self) -> dict[str, Any]:
        """What a new HMM could not save: waiting, lost and quarantined."""
        return self.call({"op": "recovery"})

    # The whole.

    def usage(self) -> list[dict[str, Any]]:
        """Per device: device, page_bytes, page_kind, total, free, reserved, used {owner: pages}.

        And claims {party: [guarantee, weight]}, touched (pages with memory behind them), pretouch
        (what goes on), pretouch_limit, touched_ahead_bytes, huge_bytes (made of 2 MiB pages).
        """
        return list(self.call({"op": "usage"})["usage"])

    def owners(self, device: str) -> dict[str, list[tuple[int, int]]]:
        """owner -> runs (first, count) of its pages; free pages under the empty name."""
        reply = self.call({"op": "owners", "device": device})
        told = {**reply["owners"], "": reply["free"]}.items()
        return {str(owner): [(int(f), int(c)) for f, c in runs] for owner, runs in told}

    def check(self) -> None:
        """Raise InvariantError unless every page of every device is in exactly one state."""
        self.call({"op": "check"})

    def fileno(self) -> int:
        """The connection's descriptor, to poll for its end; -1 when it has ended."""
        return self._sock.fileno() if self._sock is not None else -1

    def close(self) -> None:
        """End the connection: open reservations are forfeited. Mappings and tensors stay valid."""
        self._is_closed = True
        self._break()
        for handle in self._devices.values():
            if handle.fd >= 0:
                os.close(handle.fd)
        self._devices.clear()

    def __enter__(self) -> "HmmClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its reply, for operations without descriptors."""
        with self._exclusive():
            reply, fds = self._exchange(request)
        for fd in fds:
            os.close(fd)
        return reply

    # Parts.

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._deadline_s)
        limit_s = time.monotonic() + self._deadline_s
        while True:
            try:
                with short_socket_path(self._path) as name:
                    sock.connect(name)
                return sock
            except OSError as error:
                # A full queue of connections is EAGAIN at once for a socket with a timeout.
                if isinstance(error, BlockingIOError) and time.monotonic() < limit_s:
                    time.sleep(CONNECT_RETRY_S)
                    continue
                sock.close()
                raise MemoryPoolError(
                    f"no HMM answers at {self._path}: {error}",
                    next_step="is the node's agent running? `moectl status` shows it",
                ) from error

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One call at a time. A broken stream closes the connection: replies would be mistaken."""
        if not self._lock.acquire(timeout=self._deadline_s):
            raise DeadlineError(f"the HMM connection was busy for {self._deadline_s} s")
        self._limit_s = time.monotonic() + self._deadline_s
        try:
            yield
        finally:
            self._lock.release()

    def _exchange(
        self, request: dict[str, Any], given: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        frame = wire.pack(request)
        try:
            if given:
                sent = socket.send_fds(self._socket(), [frame], list(given))
                frame = frame[sent:]
            self._socket().sendall(frame)
            header = self._receive(wire.HEADER.size)
            length = wire.checked_length(header, wire.FRAME_BYTES_MAX)
            reply = wire.unpack(self._receive(length))
            fds = self._receive_fds(int(reply.get("fds", 0)))
        except TimeoutError as error:
            self._break()
            raise DeadlineError(
                f"the HMM at {self._path} did not answer {request['op']} in {self._deadline_s} s"
            ) from error
        except (OSError, ProtocolError, ValueError, TypeError) as error:
            self._break()
            raise MemoryPoolError(
                f"lost the HMM at {self._path} during {request['op']}: {error}",
                next_step="pages that are mapped stay usable; connect again when it is back",
            ) from error
        if not reply.get("ok"):
            raise_error(reply.get("error"))
        return reply, fds

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._socket().recv(count - len(data))
            if not piece:
                raise ConnectionResetError("it closed the connection")
            data += piece
        return bytes(data)

    def _receive_fds(self, count: int) -> list[int]:
        fds: list[int] = []
        try:
            while len(fds) < count:
                mark, received, flags, _ = socket.recv_fds(self._socket(), 1, wire.FDS_PER_MESSAGE)
                fds += received
                if mark != b"F" or flags & socket.MSG_CTRUNC or not received:
                    raise ConnectionResetError("descriptors did not arrive (out of descriptors?)")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise ConnectionResetError("this client is closed")
        left_s = self._limit_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
        return self._sock

    def _break(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


def _runs(pages: Sequence[int]) -> list[list[int]]:
    return [[run.first, run.count] for run in coalesce(tuple(pages))]


def _expand(runs: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return expand([PageRun(int(first), int(count)) for first, count in runs])
