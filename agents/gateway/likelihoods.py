"""How are log-probabilities told to a client? The workers' numbers in OpenAI's two shapes.

Natural logarithms of the probabilities under the model itself, before temperature, penalties and
schemas. One entry per token; a token that is part of a character has its own bytes, so that a
client can join them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .stream import Told

UNKNOWN = -9999.0  # what OpenAI shows for a token that is too unlikely to have a number

TokenBytes = Callable[[int], bytes]


def chat_entries(tokens: Sequence[Told], token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """The `content` array of a chat choice's logprobs."""
    entries = []
    for told in tokens:
        drawn, top = _numbers(told)
        entry = _entry(told.token, drawn, token_bytes)
        entry["top_logprobs"] = [_entry(token, value, token_bytes) for token, value in top]
        entries.append(entry)
    return entries


class CompletionTable:
    """The four columns of a completion's logprobs; offsets go on from piece to piece."""

    def __init__(self, token_bytes: TokenBytes, start: int = 0) -> None:
        self._token_bytes = token_bytes
        self._offset = start

    def columns(self, tokens: Sequence[Told]) -> dict[str, Any]:
        """tokens, token_logprobs, top_logprobs, text_offset of these tokens."""
        names, drawn, tops, offsets = [], [], [], []
        for told in tokens:
            name = _text(self._token_bytes(told.token))
            value, top = _numbers(told)
            names.append(name)
            drawn.append(value)
            tops.append({_text(self._token_bytes(token)): number for token, number in top})
            offsets.append(self._offset)
            self._offset += len(name)
        return {
            "tokens": names,
            "token_logprobs": drawn,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def _numbers(told: Told) -> tuple[float, list[tuple[int, float]]]:
    likelihood = told.likelihood or {}
    top = [(int(token), float(value)) for token, value in likelihood.get("top", ())]
    return float(likelihood.get("logprob", UNKNOWN)), top


def _entry(token: int, value: float, token_bytes: TokenBytes) -> dict[str, Any]:
    raw = token_bytes(token)
    return {"token": _text(raw), "logprob": value, "bytes": list(raw)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
