"""What does one request go through, from a checked ask to its answer? The gateway's main path.

`Service.open` admits and prepares (model, token ids, limits) and gives an `Exchange`; the exchange
is then either streamed or collected. Both hold a slot until they are over, count what they did, and
stop their workers when they are left early.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import MoectlError
from ...core.records import TokenRecord
from .answers import ChoiceShape, Collected, Ending, Head, Shape, Usage
from .api_errors import ApiError, failed
from .asks import Ask
from .choices import Choice, Piece, TextRules
from .fleet import Directory
from .link import Submission
from .merge import merged
from .metrics import Metrics
from .models import Models, ServedModel
from .prompts import token_ids, token_limit
from .replay import Generation
from .responses import ResponseShape

log = logging.getLogger("moectl.gateway.serving")


@dataclass(frozen=True, slots=True)
class Name:
    """A request's two names: `id` is ours and stands in the answer, `told` is the client's."""

    id: str
    told: str
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Exchange:
    """One admitted request with its choices, and what it has done so far."""

    ask: Ask
    name: Name
    shape: Shape
    choices: list[Choice]
    prompt_tokens: int
    first_text_s: float = 0.0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        cached = sum(choice.generation.timeline.cached_tokens for choice in self.choices)
        done = sum(choice.token_count for choice in self.choices)
        return Usage(self.prompt_tokens, done, min(cached, self.prompt_tokens))

    @property
    def replays(self) -> int:
        """Changes of worker so far."""
        return sum(choice.generation.replays for choice in self.choices)

    @property
    def moves(self) -> int:
        """Changes of worker at which the KV moved along, so that nothing was computed again."""
        return sum(choice.generation.moves for choice in self.choices)

    def timings(self) -> dict[str, float]:
        """Where the time went up to now; of several choices, the longest one's."""
        lines = [choice.generation.timeline for choice in self.choices]
        longest = max(lines, key=lambda line: line.total_s)
        return longest.breakdown(time.monotonic() - self.name.arrived_s)

    def ending(self) -> Ending:
        """What the last chunk, or the body, says beside the text."""
        extension: dict[str, Any] = {"replays": self.replays, "moves": self.moves}
        if self.ask.wants_timings:
            extension["timings"] = self.timings()
        is_wanted = self.ask.wants_usage or self.ask.wants_timings
        return Ending(self.usage, extension, is_wanted)


class Service:
    """Turns asks into answers."""

    def __init__(self, directory: Directory, metrics: Metrics) -> None:
        self.models = Models(directory)
        self._directory = directory
        self._metrics = metrics

    async def open(self, ask: Ask, name: Name, caller: TokenRecord) -> Exchange:
        """Prepare a request; raises ApiError before anything was sent to a worker."""
        model = await self.models.get(ask.model, caller)
        prompts = await token_ids(ask, model)
        shape = _shape(ask, model, name)
        exchange = Exchange(ask, name, shape, [], sum(map(len, prompts)))
        for ids in prompts:
            self._add_choices(exchange, model, ids)
        return exchange

    def _add_choices(self, exchange: Exchange, model: ServedModel, ids: tuple[int, ...]) -> None:
        ask = exchange.ask
        rules = TextRules(
            model.text.decode,
            ask.stops,
            echo=model.text.decode(ids) if ask.wants_echo else "",
            with_tokens=ask.wishes.logprobs is not None,
        )
        base = secrets.randbits(62) if ask.wishes.seed is None else ask.wishes.seed
        for at in range(ask.choices):
            index = len(exchange.choices)
            submission = Submission(
                prompt=ids,
                max_tokens=token_limit(ask, model, len(ids)),
                eos=() if ask.wishes.ignores_eos else model.text.eos_ids,
                sampling=ask.wishes.sampling(base + at),
                priority=ask.wishes.priority,
            )
            generation = Generation(
                self._directory,
                model.name,
                f"{exchange.name.id}.{index}",
                submission,
                model.replay_deadline_s,
            )
            exchange.choices.append(Choice(index, generation, rules))

    async def collect(self, exchange: Exchange) -> dict[str, Any]:
        """The whole answer at once."""
        answers = [Collected(choice.index) for choice in exchange.choices]
        async with contextlib.aclosing(self._steps(exchange)) as steps:
            async for choice, piece in steps:
                if piece is not None:
                    answers[choice.index].add(piece)
        for answer, choice in zip(answers, exchange.choices, strict=True):
            answer.reason = choice.finish_reason
        return exchange.shape.whole(answers, exchange.ending())

    async def stream(self, exchange: Exchange) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; an error after the start is an event too."""
        shape = exchange.shape
        try:
            for choice in exchange.choices:
                for chunk in shape.opening(choice.index):
                    yield chunk
            async with contextlib.aclosing(self._steps(exchange)) as steps:
                async for choice, piece in steps:
                    if piece is None:
                        chunks = shape.ending(choice.index, choice.finish_reason)
                    else:
                        chunks = shape.piece(choice.index, piece)
                    for chunk in chunks:
                        yield chunk
            last = shape.closing(exchange.ending())
        except MoectlError as error:
            refusal = error if isinstance(error, ApiError) else failed(error.message)
            log.warning("request %s ended early: %s", exchange.name.told, refusal.message)
            last = shape.failure(refusal)
        for chunk in last:
            yield chunk

    async def _steps(self, exchange: Exchange) -> AsyncGenerator[tuple[Choice, Piece | None], None]:
        is_whole = False
        try:
            async with contextlib.aclosing(merged(exchange.choices)) as steps:
                async for step in steps:
                    if not exchange.first_text_s and step[1] is not None:
                        exchange.first_text_s = time.monotonic()
                    yield step
            is_whole = True
        finally:
            self._count(exchange, is_whole)

    def _count(self, exchange: Exchange, is_whole: bool) -> None:
        model, usage, metrics = exchange.ask.model, exchange.usage, self._metrics
        metrics.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels(model, "cached").inc(usage.cached_tokens)
        metrics.tokens.labels(model, "completion").inc(usage.completion_tokens)
        if exchange.moves:
            metrics.moves.labels(model).inc(exchange.moves)
        if exchange.replays:
            metrics.replays.labels(model).inc(exchange.replays)
        if exchange.first_text_s:
            waited_s = exchange.first_text_s - exchange.name.arrived_s
            metrics.first_token_s.labels(model).observe(waited_s)
            later = usage.completion_tokens // max(len(exchange.choices), 1) - 1
            if later > 0:
                per_token_s = (time.monotonic() - exchange.first_text_s) / later
                metrics.per_token_s.labels(model).observe(per_token_s)
        if is_whole:
            metrics.observe_phases(model, exchange.timings())


def _shape(ask: Ask, model: ServedModel, name: Name) -> Shape:
    head = Head(name.id, int(time.time()), ask.model, ask.is_chat)
    if ask.is_response:
        return ResponseShape(head, ask)
    token_bytes: Callable[[int], bytes] = model.text.token_bytes
    return ChoiceShape(head, token_bytes, ask.wishes.logprobs is not None)
