"""What goes back to the client? Bodies and stream chunks in OpenAI's shapes. Pure.

One `Shape` per request knows the ids, times and names that every piece repeats. The one addition to
OpenAI's fields is `moectl.replays` beside the final usage: how often the request changed its
worker.
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole request."""

    prompt_tokens: int
    completion_tokens: int

    def plain(self) -> dict[str, int]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of the answers to one request."""

    request_id: str
    created: int  # seconds since the epoch
    model: str
    is_chat: bool

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk before any text of a choice; completions have none."""
        if not self.is_chat:
            return None
        return self._chunk([self._delta(index, {"role": "assistant", "content": ""}, None)])

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """A chunk with new text of a choice."""
        if self.is_chat:
            return self._chunk([self._delta(index, {"content": text}, None)])
        return self._chunk([self._completion_choice(index, text, None)])

    def ending(self, index: int, reason: str) -> dict[str, Any]:
        """The chunk that says why a choice ended."""
        if self.is_chat:
            return self._chunk([self._delta(index, {}, reason)])
        return self._chunk([self._completion_choice(index, "", reason)])

    def usage(self, usage: Usage, replays: int) -> dict[str, Any]:
        """The last chunk of a stream that asked for usage."""
        return self._chunk([]) | {"usage": usage.plain(), "moectl": {"replays": replays}}

    def whole(self, texts: list[tuple[str, str]], usage: Usage, replays: int) -> dict[str, Any]:
        """The body of an answer that is not streamed; `texts` are (text, finish reason)."""
        choices = [self._whole_choice(at, text, why) for at, (text, why) in enumerate(texts)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._head(kind) | {
            "choices": choices,
            "usage": usage.plain(),
            "moectl": {"replays": replays},
        }

    def _whole_choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        if not self.is_chat:
            return self._completion_choice(index, text, reason)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return self._head(kind) | {"choices": choices}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    @staticmethod
    def _delta(index: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}

    @staticmethod
    def _completion_choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


END_OF_STREAM = b"data: [DONE]\n\n"
