"""What happens to one submitted request between the worker's connection and its reader?

A `TokenStream` is the bounded mailbox in between: the link pushes and never waits, the reader takes
whole bunches. A reader that is too slow overflows it: then the request ends with "overflow", and
the link tells the worker to cancel, so one slow reader never holds memory or others up.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple

LOST = "lost"  # the connection broke: replay elsewhere
OVERFLOW = "overflow"  # the reader is too slow


class Told(NamedTuple):
    """One token as the worker told it."""

    number: int  # counted from 0 over the generated tokens
    token: int
    likelihood: dict[str, Any] | None = None  # {"logprob": float, "top": [[token, logprob], ...]}


@dataclass(frozen=True, slots=True)
class Bunch:
    """Tokens that came together, and the reason if they were the last."""

    tokens: tuple[Told, ...]
    done: str | None = None


class TokenStream:
    """One request on one worker. Single reader, single writer, one event loop."""

    def __init__(self, request_id: str, tokens_max: int) -> None:
        self.request_id = request_id
        self.spent: dict[str, Any] = {}  # the worker's own account of its time, with the end
        self.is_continued = False  # the worker ran it already: it moved there with its KV
        self._tokens_max = tokens_max
        self._tokens: list[Told] = []
        self._done: str | None = None
        self._ready = asyncio.Event()

    @property
    def is_done(self) -> bool:
        """Whether the last word about this request is in."""
        return self._done is not None

    def push(self, index: int, token: int, likelihood: dict[str, Any] | None = None) -> bool:
        """Take one token; False when the mailbox overflowed and the request ended by it."""
        if self._done is not None:
            return True
        if len(self._tokens) >= self._tokens_max:
            self.finish(OVERFLOW)
            return False
        self._tokens.append(Told(index, token, likelihood))
        self._ready.set()
        return True

    def finish(self, reason: str) -> None:
        """The last word; later ones are ignored."""
        if self._done is None:
            self._done = reason
            self._ready.set()

    async def next(self) -> Bunch:
        """Everything that came since the last call, waiting for at least one token or the end."""
        await self._ready.wait()
        tokens, self._tokens = tuple(self._tokens), []
        if self._done is None:
            self._ready.clear()
        return Bunch(tokens, self._done)
