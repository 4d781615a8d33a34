"""How do the tokens of one choice become the text that its client sees?

`Choice` joins a generation with its detokenizer and stop strings. `run` yields text as soon as it
is final; afterwards `finish_reason` and `token_count` tell the rest. It stops the worker as soon as
a stop string is complete, by leaving the generation.
"""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from .detokenize import Decode, Detokenizer
from .replay import Generation
from .stops import StopMatcher


class Choice:
    """One of the answers of a request."""

    def __init__(
        self, index: int, generation: Generation, decode: Decode, stops: Sequence[str], echo: str
    ) -> None:
        self.index = index
        self.generation = generation
        self.finish_reason = ""
        self._detokenizer = Detokenizer(decode)
        self._stops = StopMatcher(stops)
        self._echo = echo

    @property
    def token_count(self) -> int:
        """Tokens generated so far."""
        return len(self.generation.ledger.accepted)

    async def run(self) -> AsyncGenerator[str, None]:
        """The text, piece by piece, none of them empty."""
        if self._echo:
            yield self._echo
        async with contextlib.aclosing(self.generation.tokens()) as bunches:
            async for tokens in bunches:
                text = self._stops.push(self._detokenizer.push(tokens))
                if text:
                    yield text
                if self._stops.is_stopped:
                    self.finish_reason = "stop"
                    return
        rest = self._stops.push(self._detokenizer.finish())
        rest += self._stops.finish()
        self.finish_reason = "stop" if self._stops.is_stopped else self._reason()
        if rest:
            yield rest

    def _reason(self) -> str:
        return self.generation.finish_reason or "stop"
