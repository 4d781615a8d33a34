"""Who talks to the fleet during the demo? Several conversations at once, each answer timed.

Runs on an asyncio loop in a thread of its own, so that the clock of arrivals does not wait for the
scenario or the screen. A conversation is played again and again until `stop`; every answer becomes
a `Trace`. Errors are counted, never raised: a failed request is a result.
"""

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx

from .. import sse
from ..gateway_client import ChatOptions, chat_body
from .metrics import Trace
from .prompts import turns_of

SILENCE_MAX_S = 90.0  # a request that is replayed may wait this long; longer counts as failed
AFTER_ERROR_S = 0.3  # a refused reader does not hammer
TAIL_CHARACTERS = 400


@dataclass(slots=True)
class Speaker:
    """What one conversation is doing now, for the screen."""

    index: int
    options: ChatOptions
    turn: int = 0
    prompt: str = ""
    tail: str = ""
    tokens: int = 0
    replays: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    gateway_url: str
    token: str
    model: str


class Traffic:
    """The conversations; `traces` grows by one for each finished request."""

    def __init__(
        self, target: Target, options: list[ChatOptions], turns: int | None = None
    ) -> None:
        """`turns` of each conversation are spoken; all of them unless told."""
        self._turns = turns
        self.speakers = [Speaker(index, each) for index, each in enumerate(options)]
        self.traces: list[Trace] = []  # appended to by the loop's thread only
        self.sent = 0
        self._target = target
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def play_once(self, deadline_s: float) -> list[Trace]:
        """Every conversation once, all at the same time; returns their traces."""
        before = len(self.traces)
        self.start(forever=False)
        self.join(deadline_s)
        return self.traces[before:]

    def start(self, *, forever: bool = True) -> None:
        """Begin to talk, until `stop` or (with `forever` False) once through."""
        self._stop.clear()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(forever)), name="traffic", daemon=True
        )
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Let every request that runs end, then return."""
        self._stop.set()
        self.join(deadline_s)

    def join(self, deadline_s: float) -> None:
        """Wait for the conversations; a thread that outlives the deadline counts as failures."""
        if self._thread is not None:
            self._thread.join(deadline_s)

    @property
    def is_running(self) -> bool:
        """Whether anybody still talks."""
        return self._thread is not None and self._thread.is_alive()

    async def _run(self, forever: bool) -> None:
        limits = httpx.Limits(max_connections=len(self.speakers) + 2)
        async with httpx.AsyncClient(
            base_url=self._target.gateway_url,
            headers={"Authorization": f"Bearer {self._target.token}"},
            timeout=httpx.Timeout(SILENCE_MAX_S, connect=10.0),
            limits=limits,
            trust_env=False,
        ) as http:
            await asyncio.gather(*(self._converse(http, s, forever) for s in self.speakers))

    async def _converse(self, http: httpx.AsyncClient, speaker: Speaker, forever: bool) -> None:
        while True:
            history: list[dict[str, str]] = []
            for turn, text in enumerate(turns_of(speaker.index)[: self._turns]):
                history.append({"role": "user", "content": text})
                speaker.turn, speaker.prompt, speaker.tail = turn, text, ""
                trace = await self._ask(http, speaker, history)
                self.traces.append(trace)
                if not trace.is_ok:
                    speaker.failures += 1
                    await asyncio.sleep(AFTER_ERROR_S)
                    break
                history.append({"role": "assistant", "content": trace.text})
                if self._stop.is_set():
                    return
            if not forever or self._stop.is_set():
                return

    async def _ask(
        self, http: httpx.AsyncClient, speaker: Speaker, history: list[dict[str, str]]
    ) -> Trace:
        """One request, to its end or its failure."""
        body = chat_body(self._target.model, history, speaker.options)
        answer = _Answer(speaker, time.time())
        self.sent += 1
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code >= 400:
                    text = (await response.aread()).decode(errors="replace")
                    return answer.trace(f"HTTP {response.status_code}: {text[:200]}")
                reader = sse.EventReader()
                async for line in response.aiter_lines():
                    event = reader.feed(line)
                    if event is not None and answer.take(event.data, time.time()):
                        return answer.trace(answer.problem())
        except (httpx.HTTPError, ValueError) as error:
            return answer.trace(f"{type(error).__name__}: {error}")
        return answer.trace("the stream ended without [DONE]")


class _Answer:
    """Collects the pieces of one streamed answer."""

    def __init__(self, speaker: Speaker, sent_at: float) -> None:
        self._speaker = speaker
        self._sent_at = sent_at
        self._arrivals: list[float] = []
        self._pieces: list[str] = []
        self._replays = self._moves = 0
        self._finished = False
        self._error = ""

    def take(self, data: str, now: float) -> bool:
        """One event of the stream; True when it was the last."""
        if data == "[DONE]":
            return True
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            self._error = f"error in the stream: {chunk['error'].get('message', chunk['error'])}"
            return True
        for choice in chunk.get("choices", ()):
            self._finished |= choice.get("finish_reason") is not None
            self._take_text(choice.get("delta", {}).get("content") or "", now)
        told = chunk.get("moectl") or {}
        self._replays = int(told.get("replays", self._replays))
        self._moves = int(told.get("moves", self._moves))
        return False

    def _take_text(self, text: str, now: float) -> None:
        if not text:
            return
        self._arrivals.append(now)
        self._pieces.append(text)
        self._speaker.tokens += 1
        self._speaker.tail = (self._speaker.tail + text)[-TAIL_CHARACTERS:]

    def problem(self) -> str:
        """Why the answer does not count, or nothing."""
        return self._error or ("" if self._finished else "[DONE] came without a finish reason")

    def trace(self, error: str) -> Trace:
        """What is kept of it."""
        self._speaker.replays += self._replays
        return Trace(
            conversation=self._speaker.index,
            turn=self._speaker.turn,
            sent_at=self._sent_at,
            arrivals=tuple(self._arrivals),
            ended_at=time.time(),
            text="".join(self._pieces),
            replays=self._replays,
            moves=self._moves,
            error=error,
        )
