"""What does one request go through, from a checked ask to its answer? The gateway's main path.

`Service.open` admits and prepares (model, token ids, limits) and gives an `Exchange`; the exchange
is then either streamed or collected. Both hold a slot until they are over, count what they did, and
stop their workers when they are left early.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ...core.errors import MoectlError
from .answers import END_OF_STREAM, Shape, Usage, event
from .api_errors import ApiError, context_overflow, failed, invalid
from .asks import Ask
from .choices import Choice
from .fleet import Directory
from .link import Submission
from .merge import merged
from .metrics import Metrics
from .models import Models, ServedModel
from .replay import Generation

log = logging.getLogger("moectl.gateway.serving")

INLINE_CHARACTERS_MAX = 4096  # a longer prompt is tokenized in a thread: it takes milliseconds


@dataclass(slots=True)
class Exchange:
    """One admitted request with its choices, and what it has done so far."""

    ask: Ask
    shape: Shape
    choices: list[Choice]
    prompt_tokens: int
    started_s: float  # monotonic
    first_text_s: float = 0.0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self.prompt_tokens, sum(choice.token_count for choice in self.choices))

    @property
    def replays(self) -> int:
        """Changes of worker so far."""
        return sum(choice.generation.replays for choice in self.choices)


class Service:
    """Turns asks into answers."""

    def __init__(self, directory: Directory, metrics: Metrics) -> None:
        self.models = Models(directory)
        self._directory = directory
        self._metrics = metrics

    async def open(self, ask: Ask, request_id: str) -> Exchange:
        """Prepare a request; raises ApiError before anything was sent to a worker."""
        started_s = time.monotonic()
        model = await self.models.get(ask.model)
        prompts = await _token_ids(ask, model)
        shape = Shape(request_id, int(time.time()), ask.model, ask.is_chat)
        exchange = Exchange(ask, shape, [], sum(map(len, prompts)), started_s)
        for ids in prompts:
            self._add_choices(exchange, model, ids)
        return exchange

    def _add_choices(self, exchange: Exchange, model: ServedModel, ids: tuple[int, ...]) -> None:
        ask = exchange.ask
        max_tokens = _token_limit(ask, model, len(ids))
        echo = model.text.decode(ids) if ask.wants_echo else ""
        base = secrets.randbits(62) if ask.seed is None else ask.seed
        for at in range(ask.choices):
            index = len(exchange.choices)
            submission = Submission(
                prompt=ids,
                max_tokens=max_tokens,
                eos=() if ask.ignores_eos else model.text.eos_ids,
                sampling=_sampling(ask, base + at),
            )
            name = f"{exchange.shape.request_id}.{index}"
            generation = Generation(
                self._directory, model.name, name, submission, model.replay_deadline_s
            )
            choice = Choice(index, generation, model.text.decode, ask.stops, echo)
            exchange.choices.append(choice)

    async def collect(self, exchange: Exchange) -> dict[str, object]:
        """The whole answer at once."""
        texts: list[list[str]] = [[] for _ in exchange.choices]
        async with contextlib.aclosing(self._pieces(exchange)) as pieces:
            async for choice, text in pieces:
                if text is not None:
                    texts[choice.index].append(text)
        answers = [
            ("".join(texts[choice.index]), choice.finish_reason) for choice in exchange.choices
        ]
        return exchange.shape.whole(answers, exchange.usage, exchange.replays)

    async def stream(self, exchange: Exchange) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; an error after the start is an event too."""
        shape = exchange.shape
        try:
            for choice in exchange.choices:
                opening = shape.opening(choice.index)
                if opening is not None:
                    yield event(opening)
            async with contextlib.aclosing(self._pieces(exchange)) as pieces:
                async for choice, text in pieces:
                    if text is None:
                        yield event(shape.ending(choice.index, choice.finish_reason))
                    else:
                        yield event(shape.piece(choice.index, text))
            if exchange.ask.wants_usage:
                yield event(shape.usage(exchange.usage, exchange.replays))
        except MoectlError as error:
            refusal = error if isinstance(error, ApiError) else failed(error.message)
            log.warning("request %s ended early: %s", shape.request_id, refusal.message)
            yield event(refusal.body())
        yield END_OF_STREAM

    async def _pieces(self, exchange: Exchange) -> AsyncGenerator[tuple[Choice, str | None], None]:
        try:
            async with contextlib.aclosing(merged(exchange.choices)) as pieces:
                async for piece in pieces:
                    if not exchange.first_text_s and piece[1] is not None:
                        exchange.first_text_s = time.monotonic()
                    yield piece
        finally:
            self._count(exchange)

    def _count(self, exchange: Exchange) -> None:
        model, usage = exchange.ask.model, exchange.usage
        self._metrics.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._metrics.tokens.labels(model, "completion").inc(usage.completion_tokens)
        if exchange.replays:
            self._metrics.replays.labels(model).inc(exchange.replays)
        if exchange.first_text_s:
            waited_s = exchange.first_text_s - exchange.started_s
            self._metrics.first_token_s.labels(model).observe(waited_s)
            later = usage.completion_tokens // max(len(exchange.choices), 1) - 1
            if later > 0:
                per_token_s = (time.monotonic() - exchange.first_text_s) / later
                self._metrics.per_token_s.labels(model).observe(per_token_s)


async def _token_ids(ask: Ask, model: ServedModel) -> list[tuple[int, ...]]:
    size = sum(len(prompt) for prompt in ask.prompts)
    size += sum(len(message["content"]) for message in ask.messages)
    if size <= INLINE_CHARACTERS_MAX:
        return _encode(ask, model)
    return await asyncio.to_thread(_encode, ask, model)


def _encode(ask: Ask, model: ServedModel) -> list[tuple[int, ...]]:
    """Token ids of every prompt; raises ApiError 400."""
    if ask.is_chat:
        try:
            prompts = [tuple(model.text.encode_chat(ask.messages))]
        except ValueError as error:
            raise invalid(str(error), "messages") from error
    else:
        prompts = [
            tuple(model.text.encode(prompt)) if isinstance(prompt, str) else prompt
            for prompt in ask.prompts
        ]
    for ids in prompts:
        if not ids:
            raise invalid("the prompt is empty", "messages" if ask.is_chat else "prompt")
        if max(ids) >= model.text.vocabulary:
            raise invalid(f"token ids must be below {model.text.vocabulary}", "prompt")
    return prompts


def _token_limit(ask: Ask, model: ServedModel, prompt_tokens: int) -> int:
    """How many tokens may be generated; raises ApiError 400 when that does not fit the context."""
    left = model.context_tokens - prompt_tokens
    wanted = max(left, 1) if ask.max_tokens is None else ask.max_tokens
    if wanted > left:
        error = context_overflow(prompt_tokens, wanted, model.context_tokens)
        error.param = "messages" if ask.is_chat else "prompt"
        raise error
    return wanted


def _sampling(ask: Ask, seed: int) -> dict[str, float | int]:
    return {
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "top_k": ask.top_k,
        "seed": seed % (1 << 63),
    }
