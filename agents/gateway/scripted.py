"""A worker without an engine: it speaks the data protocol and its tokens are a formula.

For tests and trying a gateway by hand (`python -m moectl.agents.gateway.scripted --help`): token
`index` of a prompt is the same wherever and whenever it is computed, so a replay can be checked
against a run that never moved. It can leave, refuse, break off and misbehave on command.
"""

import argparse
import asyncio
import contextlib
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import ProtocolError
from ..wire import encode, read_message

Formula = Callable[[Sequence[int], int], int]


def formula(vocabulary: int) -> Formula:
    """Token ids in [1, vocabulary) that depend on the whole prompt and the index."""

    def token(prompt: Sequence[int], index: int) -> int:
        text = ",".join(map(str, prompt)) + f"/{index}"
        return 1 + zlib.crc32(text.encode()) % (vocabulary - 1)

    return token


@dataclass(slots=True)
class Script:
    """How the worker behaves; may be changed while it runs."""

    token: Formula
    token_s: float = 0.0  # between two tokens of a request
    context_tokens: int = 4096
    refusal: str = ""  # refuse every submit with this reason
    error_at: int = -1  # report an engine error instead of this index
    repeat_at: int = -1  # send this index twice
    skip_at: int = -1  # never send this index
    answers_pings: bool = True  # False: as a stopped process, whose kernel answers for it
    spent: dict[str, Any] = field(default_factory=dict)  # told with the end of each request
    submitted: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)


class ScriptedWorker:
    """A TCP server on `address` after `start`."""

    def __init__(self, script: Script, secret: str) -> None:
        self.script = script
        self.address = ""
        self._secret = secret
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._requests: dict[str, tuple[asyncio.Task[None], asyncio.StreamWriter]] = {}
        self.adopted: set[str] = set()  # keys of requests that moved here, until they are claimed

    @property
    def running(self) -> int:
        """Requests held now."""
        return len(self._requests)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, host, port)
        bound = self._server.sockets[0].getsockname()
        self.address = f"{bound[0]}:{bound[1]}"

    def leave(self, to: "ScriptedWorker | None" = None, is_known: bool = True) -> None:
        """Answer "moved" to everything held: the rank leaves, and hands requests over `to` another.

        Not `is_known`: that one has lost them already.
        """
        for request_id, (task, writer) in list(self._requests.items()):
            task.cancel()
            self._requests.pop(request_id, None)
            key = f"moved/{request_id}"
            if to is not None and is_known:
                to.adopted.add(key)
            reason = "moved" if to is None else f"moved:{to.address} {key}"
            writer.write(encode({"tokens": [], "done": [[request_id, reason]]}))

    async def break_off(self) -> None:
        """Stop at once, as a killed process does: every connection is reset."""
        if self._server is not None:
            self._server.close()
        for task, _writer in self._requests.values():
            task.cancel()
        self._requests.clear()
        for writer in list(self._writers):
            writer.transport.abort()
        if self._server is not None:
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            hello = await read_message(reader)
            ok = hello.get("secret") == self._secret
            reply = {"ok": ok, "model": "scripted", "rank": 0, "answers_pings": True}
            writer.write(encode(reply | {"context_tokens": self.script.context_tokens}))
            while ok:
                self._take(await read_message(reader), writer)
        except (OSError, ProtocolError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _take(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if message["op"] == "ping":
            if self.script.answers_pings:
                writer.write(encode({"pong": 1}))
            return
        request_id = message["id"]
        if message["op"] == "cancel":
            held = self._requests.pop(request_id, None)
            if held is not None:
                held[0].cancel()
                self.script.cancelled.append(request_id)
            return
        self.script.submitted.append(message)
        if self.script.refusal:
            done = [[request_id, f"refused:{self.script.refusal}"]]
            writer.write(encode({"tokens": [], "done": done}))
            return
        if message.get("moved") in self.adopted:
            self.adopted.discard(message["moved"])
            writer.write(encode({"tokens": [], "done": [], "continued": [request_id]}))
        task = asyncio.get_running_loop().create_task(self._generate(message, writer))
        self._requests[request_id] = (task, writer)

    async def _generate(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        request_id, prompt = message["id"], message["prompt"]
        reason = "length"
        with contextlib.suppress(OSError):
            for index in range(len(message["already"]), message["max_tokens"]):
                await asyncio.sleep(self.script.token_s)
                if index == self.script.error_at:
                    reason = "error:scripted"
                    break
                token = self.script.token(prompt, index)
                rows: list[list[Any]] = [[request_id, index, token, *_likelihood(message, token)]]
                rows *= 0 if index == self.script.skip_at else 1 + (index == self.script.repeat_at)
                writer.write(encode({"tokens": rows, "done": []}))
                await writer.drain()
                if token in message["eos"]:
                    reason = "stop"
                    break
            spent = [[request_id, self.script.spent]] if self.script.spent else []
            end = {"tokens": [], "spent": spent, "done": [[request_id, reason]]}
            writer.write(encode(end))
        self._requests.pop(request_id, None)


def _likelihood(message: dict[str, Any], token: int) -> list[dict[str, Any]]:
    """Made-up log-probabilities when some are asked for."""
    count = message["sampling"].get("logprobs")
    if count is None:
        return []
    top = [[token + at, -0.5 - at] for at in range(count)]
    return [{"logprob": -0.5, "top": top}]


async def _run(args: argparse.Namespace) -> None:
    secret = args.secret_file.read_text(encoding="utf-8").strip()
    worker = ScriptedWorker(Script(formula(args.vocabulary), token_s=args.token_s), secret)
    await worker.start(port=args.port)
    print(worker.address, flush=True)
    await asyncio.Event().wait()


def main(argv: list[str] | None = None) -> int:
    """Run one until killed; its address is printed on the first line."""
    parser = argparse.ArgumentParser(description="A worker whose tokens are a formula")
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--token-s", type=float, default=0.01)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
