"""How does one generation survive its worker? The loop that submits, and submits again elsewhere.

A worker that leaves hands requests over with their KV and answers "moved:<address> <key>": such a
one is claimed there, by that key, and nothing is computed again. Where that is not possible it
answers "moved", and one that dies breaks its connection: then the request goes to another worker
with the tokens that the client already has (a replay). Either way the ledger makes sure that none
is repeated or missing. Waiting for a worker is bounded by the model's replay deadline; a
worker that reports errors is tried a few times, never for ever.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Protocol

from ...core.errors import ProtocolError
from ..changes import Changes
from .api_errors import ApiError, failed, invalid, too_many, unavailable
from .ledger import Ledger
from .link import Submission, WorkerLink
from .prefixes import Keys, prefix_keys
from .stream import LOST, OVERFLOW, TokenStream, Told
from .timing import Timeline

ERRORS_MAX = 3  # a step that fails on three workers will fail on a fourth
BUSY_S = 2.0  # how long full queues everywhere are waited out before 429
BUSY_PAUSE_S = 0.05
MOVED_PAUSE_S = 1.0  # a leaving worker's record may still say "serving" for a moment


class Fleet(Protocol):
    """What replay needs to know of the workers."""

    changes: Changes
    waiting: Counter[str]  # by model

    def pick(self, model: str, avoid: frozenset[str], prefix: Keys = ()) -> WorkerLink | None:
        """The link of the worker to send to now, or None; `avoid` are addresses."""

    def at(self, model: str, address: str) -> WorkerLink | None:
        """The link of a model's worker at an address, or None."""


class Generation:
    """One choice of one request; `tokens()` yields bunches of new tokens in order, exactly once."""

    def __init__(
        self, fleet: Fleet, model: str, name: str, submission: Submission, deadline_s: float
    ) -> None:
        self.ledger = Ledger(submission.max_tokens, frozenset(submission.eos))
        self.finish_reason: str | None = None  # "stop" or "length", once known
        self.replays = 0
        self.moves = 0  # changes of worker at which its KV moved along
        self.timeline = Timeline()
        self._prefix = prefix_keys(submission.prompt)
        self._fleet = fleet
        self._model = model
        self._name = name
        self._submission = submission
        self._deadline_s = deadline_s
        self._attempts = 0
        self._moved_to: tuple[str, str] | None = None  # address and key, until it is claimed there
        self._errors = 0
        self._busy_since: float | None = None
        self._avoid: dict[str, float] = {}  # worker's address -> until when (loop time)

    async def tokens(self) -> AsyncGenerator[list[Told], None]:
        """New tokens until the generation ends; raises ApiError when it cannot go on."""
        while self.finish_reason is None:
            link, stream = self._claim() or await self._submit()
            done: str | None = None
            try:
                while done is None:
                    bunch = await stream.next()
                    fresh = self._take(bunch.tokens)
                    if fresh:
                        self.timeline.tokens_came(_now())
                    self.finish_reason = self.ledger.finish_reason
                    if fresh:
                        yield fresh
                    done = bunch.done or self.finish_reason
            except ProtocolError as error:
                done = f"error:{error.message}"
            finally:
                self.timeline.ended(_now(), stream.spent)
                link.cancel(stream)
                self._count_change(stream)
            if self.finish_reason is None:
                self._settle(done, link.address)

    def _take(self, tokens: tuple[Told, ...]) -> list[Told]:
        fresh = [told for told in tokens if self.ledger.accept(told.number, told.token)]
        if fresh:
            self._busy_since = None
        return fresh

    def _claim(self) -> tuple[WorkerLink, TokenStream] | None:
        """Go on reading where the request moved; None when it did not, or nobody can be asked."""
        if self._moved_to is None:
            return None
        link = self._fleet.at(self._model, self._moved_to[0])
        stream = self._send(link, self._moved_to[1]) if link is not None else None
        if link is None or stream is None:
            self._moved_to = None
            self.replays += 1
            return None
        return link, stream

    def _count_change(self, stream: TokenStream) -> None:
        """A claimed attempt is over: it was a move, or a replay if the worker did not know it."""
        if self._moved_to is not None:
            self.moves += stream.is_continued
            self.replays += not stream.is_continued
            self._moved_to = None

    def _send(self, link: WorkerLink, key: str = "") -> TokenStream | None:
        self._attempts += 1
        name = f"{self._name}.{self._attempts}"
        stream = link.submit(name, self._submission, self.ledger.accepted, key)
        if stream is not None:
            self.timeline.sent(_now())
        return stream

    async def _submit(self) -> tuple[WorkerLink, TokenStream]:
        """Send to the best worker, waiting for one until the deadline."""
        now = _now
        started = now()
        until = started + self._deadline_s
        while True:
            ticket = self._fleet.changes.ticket()
            self._avoid = {key: end for key, end in self._avoid.items() if end > now()}
            link = self._fleet.pick(self._model, frozenset(self._avoid), self._prefix)
            if link is not None:
                stream = self._send(link)
                if stream is not None:
                    self.timeline.waited(now() - started)
                    return link, stream
                self._avoid[link.address] = now() + BUSY_PAUSE_S
            wake = min([until, *self._avoid.values()]) - now()
            self._fleet.waiting[self._model] += 1
            try:
                await self._fleet.changes.wait(ticket, max(wake, 0.001))
            finally:
                self._fleet.waiting[self._model] -= 1
            if now() >= until:
                raise unavailable(
                    f"no worker of model {self._model!r} was ready within {self._deadline_s:g} s"
                )

    def _settle(self, reason: str, address: str) -> None:
        """What an ended attempt means: return to try elsewhere, or raise."""
        now = _now()
        kind, _, why = reason.partition(":")
        if kind in ("stop", "length"):
            self.finish_reason = kind
        elif kind in (LOST, "moved"):
            where, _, key = why.partition(" ")
            self._moved_to = (where, key) if kind == "moved" and key else None
            self.replays += self._moved_to is None
            self._avoid[address] = now + MOVED_PAUSE_S
        elif kind == "refused" and "queue full" in why:
            self._settle_busy(address, now)
        elif kind == "error":
            self._settle_error(why, address, now)
        else:
            raise _refusal(kind, why)

    def _settle_busy(self, address: str, now: float) -> None:
        if self._busy_since is None:
            self._busy_since = now
        if now - self._busy_since > BUSY_S:
            raise too_many(f"every worker of model {self._model!r} has a full queue")
        self._avoid[address] = now + BUSY_PAUSE_S

    def _settle_error(self, why: str, address: str, now: float) -> None:
        self._errors += 1
        if self._errors >= ERRORS_MAX:
            raise failed(f"the engine failed {self._errors} times, last: {why}")
        self.replays += 1
        self._avoid[address] = now + MOVED_PAUSE_S


def _now() -> float:
    return asyncio.get_running_loop().time()


def _refusal(kind: str, why: str) -> ApiError:
    if kind == "refused":
        return invalid(f"the model refused the request: {why}", None, code="request_refused")
    if kind == OVERFLOW:
        return too_many("the response was not read fast enough and was cancelled")
    return failed(f"the engine ended the request: {kind}")
