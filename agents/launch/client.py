"""How does an agent ask its fork server for processes? One request at a time, each with a deadline.

`argv` says how the server is started; starting and ending it is the agent's business. A broken
connection is closed and the next call connects again, so a fork server that was replaced is found.
"""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

from ...core.errors import DeadlineError, EngineError, ProtocolError
from ...core.paths import short_socket_path
from ...memory.hmm import wire
from .orders import WorkerLaunch

#: Forking takes tens of milliseconds and a first template about a second; busy cores multiply that.
DEADLINE_S = 30.0


def argv(socket_path: Path, ready_fd: int) -> list[str]:
    """The command that starts a fork server; `ready_fd` must be passed on to it."""
    module = "moectl.agents.launch.forkserver"
    options = ["--socket", str(socket_path), "--ready-fd", str(ready_fd)]
    return [sys.executable, "-P", "-m", module, *options]


class ForkServerClient:
    """Calls of one fork server; safe to use from several tasks of one loop."""

    def __init__(self, socket_path: Path, deadline_s: float = DEADLINE_S) -> None:
        self._path = socket_path
        self._deadline_s = deadline_s
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ping(self) -> dict[str, Any]:
        """{"pid", "children": {pid: what}, "templates": [folder]}."""
        return await self._call({"op": "ping"})

    async def template(self, model_folder: str) -> None:
        """Prepare the template of a model, so that the first spawn is as fast as the next."""
        await self._call({"op": "template", "folder": model_folder})

    async def spawn(self, launch: WorkerLaunch) -> int:
        """Fork a worker; returns its pid at once, the worker then listens on its control socket."""
        reply = await self._call({"op": "spawn", "config": launch.to_plain()})
        return int(reply["pid"])

    async def spawn_store(self, host: str) -> tuple[int, int]:
        """Fork a process that hosts a TCPStore on an address; returns (pid, port)."""
        reply = await self._call({"op": "spawn_store", "host": host})
        return int(reply["pid"]), int(reply["port"])

    async def spawn_server(self, socket_path: Path, log_path: Path) -> int:
        """Fork a fork server that will serve at another path; returns its pid."""
        request = {"op": "spawn_server", "socket": str(socket_path), "log": str(log_path)}
        return int((await self._call(request))["pid"])

    async def stop(self) -> None:
        """End the fork server; its children live on."""
        await self._call({"op": "stop"})
        await self.close()

    async def close(self) -> None:
        """Drop the connection."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()

    async def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._lock:
            try:
                async with asyncio.timeout(self._deadline_s):
                    reply = await self._exchange(request)
            except TimeoutError as error:
                await self.close()
                raise DeadlineError(
                    f"the fork server at {self._path} did not answer {request['op']} in "
                    f"{self._deadline_s} s"
                ) from error
            except (OSError, asyncio.IncompleteReadError, ProtocolError) as error:
                await self.close()
                raise EngineError(
                    f"no fork server answers at {self._path}: {error}",
                    next_step="the node's agent starts it again",
                ) from error
        if not reply.get("ok"):
            raise EngineError(f"the fork server refused {request['op']}: {reply.get('error')}")
        return reply

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._streams is None:
            with short_socket_path(self._path) as name:
                self._streams = await asyncio.open_unix_connection(name)
        reader, writer = self._streams
        writer.write(wire.pack(request))
        await writer.drain()
        header = await reader.readexactly(wire.HEADER.size)
        length = wire.checked_length(header, wire.FRAME_BYTES_MAX)
        return wire.unpack(await reader.readexactly(length))
