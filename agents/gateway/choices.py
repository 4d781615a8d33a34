"""How do the tokens of one choice become the text that its client sees?

`Choice` joins a generation with its detokenizer and stop strings. `run` yields text as soon as it
is final; afterwards `finish_reason` and `token_count` tell the rest. It stops the worker as soon as
a stop string is complete, by leaving the generation.
"""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from .detokenize import Decode, Detokenizer
from .replay import Generation
from .stops import StopMatcher
from .stream import Told


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown now, and the tokens that came since the last piece."""

    text: str
    tokens: tuple[Told, ...] = ()


@dataclass(frozen=True, slots=True)
class TextRules:
    """How the text of a choice begins, is made, and may end."""

    decode: Decode
    stops: Sequence[str] = ()
    echo: str = ""
    with_tokens: bool = field(default=False)  # pieces carry tokens, for log-probabilities


class Choice:
    """One of the answers of a request."""

    def __init__(self, index: int, generation: Generation, rules: TextRules) -> None:
        self.index = index
        self.generation = generation
        self.finish_reason = ""
        self._rules = rules
        self._detokenizer = Detokenizer(rules.decode)
        self._stops = StopMatcher(rules.stops)

    @property
    def token_count(self) -> int:
        """Tokens generated so far."""
        return len(self.generation.ledger.accepted)

    async def run(self) -> AsyncGenerator[Piece, None]:
        """The text, piece by piece; none of them empty, but the last may have only tokens."""
        untold: list[Told] = []
        if self._rules.echo:
            yield Piece(self._rules.echo)
        async with contextlib.aclosing(self.generation.tokens()) as bunches:
            async for bunch in bunches:
                if self._rules.with_tokens:
                    untold += bunch
                text = self._stops.push(self._detokenizer.push([told.token for told in bunch]))
                if self._stops.is_stopped:
                    self.finish_reason = "stop"
                if text or (untold and self._stops.is_stopped):
                    yield Piece(text, tuple(untold))
                    untold.clear()
                if self._stops.is_stopped:
                    return
        rest = self._stops.push(self._detokenizer.finish())
        rest += self._stops.finish()
        self.finish_reason = "stop" if self._stops.is_stopped else self._reason()
        if rest or untold:
            yield Piece(rest, tuple(untold))

    def _reason(self) -> str:
        return self.generation.finish_reason or "stop"
