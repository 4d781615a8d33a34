"""What goes back to the client? Bodies and stream events in OpenAI's shapes. Pure.

One `Shape` per request knows the ids, times and names that every piece repeats. The one addition to
OpenAI's fields is `moectl` beside the final usage: `replays` (how often the request changed its
worker), and `timings` when they were asked for. `/v1/responses` has a shape of its own with the
same methods (`responses.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .api_errors import ApiError
from .choices import Piece
from .likelihoods import CompletionTable, TokenBytes, chat_entries
from .stream import Told


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole request; `cached_tokens` of the prompt needed no computing."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def plain(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Collected:
    """A finished choice of an answer that is not streamed."""

    index: int
    texts: list[str] = field(default_factory=list)
    tokens: list[Told] = field(default_factory=list)
    reason: str = ""

    def add(self, piece: Piece) -> None:
        """Take a piece."""
        self.texts.append(piece.text)
        self.tokens += piece.tokens


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known when everything is over; `extension` is the `moectl` object."""

    usage: Usage
    extension: dict[str, Any]
    is_wanted: bool = True  # a stream tells it only to who asked


class Shape(Protocol):
    """The form of the answers to one request; the methods give server-sent events."""

    request_id: str

    def opening(self, index: int) -> list[bytes]:
        """Before any text of a choice."""

    def piece(self, index: int, piece: Piece) -> list[bytes]:
        """New text of a choice."""

    def ending(self, index: int, reason: str) -> list[bytes]:
        """A choice is over."""

    def closing(self, ending: Ending) -> list[bytes]:
        """All of them are."""

    def failure(self, error: ApiError) -> list[bytes]:
        """It cannot go on."""

    def whole(self, choices: Sequence[Collected], ending: Ending) -> dict[str, Any]:
        """The body of an answer that is not streamed."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every piece of one answer repeats."""

    request_id: str
    created: int  # seconds since the epoch
    model: str
    is_chat: bool

    def plain(self, kind: str) -> dict[str, Any]:
        """The first fields of a body or chunk."""
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


class ChoiceShape:
    """The form of completions and chat completions."""

    def __init__(self, head: Head, token_bytes: TokenBytes, logprobs: bool) -> None:
        self.request_id = head.request_id
        self._head = head
        self._token_bytes = token_bytes
        self._logprobs = logprobs
        self._tables: dict[int, CompletionTable] = {}

    def opening(self, index: int) -> list[bytes]:
        """Chat begins with a role; completions with nothing."""
        if not self._head.is_chat:
            return []
        return [self._chunk([_delta(index, {"role": "assistant", "content": ""})])]

    def piece(self, index: int, piece: Piece) -> list[bytes]:
        """A chunk with new text of a choice."""
        logprobs = self._told(index, piece.tokens)
        if self._head.is_chat:
            return [self._chunk([_delta(index, {"content": piece.text}, logprobs=logprobs)])]
        return [self._chunk([_completion(index, piece.text, None, logprobs)])]

    def ending(self, index: int, reason: str) -> list[bytes]:
        """The chunk that says why a choice ended."""
        if self._head.is_chat:
            return [self._chunk([_delta(index, {}, reason)])]
        return [self._chunk([_completion(index, "", reason, None)])]

    def closing(self, ending: Ending) -> list[bytes]:
        """Usage if it was asked for, then the end mark."""
        if not ending.is_wanted:
            return [END_OF_STREAM]
        last = {"usage": ending.usage.plain(), "moectl": ending.extension}
        return [self._chunk([], last), END_OF_STREAM]

    def failure(self, error: ApiError) -> list[bytes]:
        """The error as an event, which the clients raise."""
        return [event(error.body()), END_OF_STREAM]

    def whole(self, choices: Sequence[Collected], ending: Ending) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        kind = "chat.completion" if self._head.is_chat else "text_completion"
        return self._head.plain(kind) | {
            "choices": [self._whole_choice(choice) for choice in choices],
            "usage": ending.usage.plain(),
            "moectl": ending.extension,
        }

    def _whole_choice(self, choice: Collected) -> dict[str, Any]:
        text, logprobs = "".join(choice.texts), self._told(choice.index, choice.tokens)
        if not self._head.is_chat:
            return _completion(choice.index, text, choice.reason, logprobs)
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": choice.reason,
        }

    def _told(self, index: int, tokens: Sequence[Told]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        if self._head.is_chat:
            return {"content": chat_entries(tokens, self._token_bytes), "refusal": None}
        table = self._tables.setdefault(index, CompletionTable(self._token_bytes))
        return table.columns(tokens)

    def _chunk(self, choices: list[dict[str, Any]], extra: dict[str, Any] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self._head.is_chat else "text_completion"
        return event(self._head.plain(kind) | {"choices": choices} | (extra or {}))


def event(data: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    body = b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
    return b"event: " + name.encode() + b"\n" + body if name else body


END_OF_STREAM = b"data: [DONE]\n\n"


def _delta(
    index: int,
    delta: dict[str, str],
    reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _completion(
    index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
