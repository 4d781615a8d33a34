"""What text do new tokens add, when a character may span several tokens?

Text is given out as soon as it can no longer change: an unfinished UTF-8 sequence at the end (shown
by tokenizers as U+FFFD) is held back until it is finished or nothing more comes. Decoding looks at
a short window of recent tokens, so the cost per token does not grow with the length of the answer.
"""

from collections.abc import Callable, Sequence

HELD_CHARACTERS_MAX = 3  # an unfinished sequence has at most 3 bytes, so at most 3 U+FFFD
WINDOW_TOKENS_MAX = 64  # a longer run without a clean end is broken text: let it go
_UNFINISHED = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Text of one choice. `push` returns what can be shown now, `finish` the rest."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []  # tokens already shown whole; kept for spaces between words
        self._context_text = ""
        self._window: list[int] = []  # tokens since the last clean end
        self._shown = 0  # characters of the window's text that were given out

    def push(self, tokens: Sequence[int]) -> str:
        """Take tokens, return the text that they make final."""
        return "".join(self._push_one(token) for token in tokens)

    def finish(self) -> str:
        """The text still held back; nothing may be pushed after it."""
        rest = self._window_text()[self._shown :]
        self._window.clear()
        return rest

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        text = self._window_text()
        stable = len(text) - _unfinished_count(text)
        fresh = text[self._shown : stable]
        self._shown = max(self._shown, stable)
        is_clean = bool(text) and stable == len(text)
        if is_clean or len(self._window) >= WINDOW_TOKENS_MAX:
            fresh += text[self._shown :]
            self._turn_page()
        return fresh

    def _turn_page(self) -> None:
        self._context, self._window, self._shown = self._window[-8:], [], 0
        self._context_text = self._decode(self._context)

    def _window_text(self) -> str:
        return self._decode(self._context + self._window)[len(self._context_text) :]


def _unfinished_count(text: str) -> int:
    trailing = len(text) - len(text.rstrip(_UNFINISHED))
    return min(trailing, HELD_CHARACTERS_MAX)
