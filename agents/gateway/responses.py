"""How is `/v1/responses` served? Its requests read into the same `Ask`, its answers in its shape.

Stateless and text only: nothing is stored, so an earlier response cannot be continued by its id,
and tools, reasoning and background runs are refused by name. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import wishes as drawing
from .answers import Collected, Ending, Head, event
from .api_errors import ApiError, invalid
from .asks import TOKENS_MAX, Ask, check_names, read_model, read_own_options
from .choices import Piece
from .fields import read_boolean, read_integer, read_text, wrong_type
from .messages import Message, read_messages
from .wishes import read_wishes

_NO_OPS: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "include": (None, []),
    "max_tool_calls": (None,),
    "parallel_tool_calls": (None, True, False),
    "previous_response_id": (None,),
    "prompt": (None,),
    "reasoning": (None, {}),
    "service_tier": (None, "auto", "default"),
    "store": (None, True, False),  # True is OpenAI's default; the answer says that it was not
    "stream_options": (None,),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "truncation": (None, "disabled"),
}
NAMES = (drawing.NAMES - {"response_format"}) | {
    "model", "input", "instructions", "max_output_tokens", "stream", "text", "user", "moectl",
}  # fmt: skip


def read_response(data: dict[str, Any], _choices_max: int) -> Ask:
    """Check the body of /v1/responses; raises ApiError naming the parameter."""
    check_names(data, NAMES, _NO_OPS)
    if data.get("user") is not None:
        read_text(data["user"], "user")
    wishes = read_wishes(data, None)
    return Ask(
        model=read_model(data.get("model")),
        messages=_read_instructions(data.get("instructions")) + _read_input(data.get("input")),
        max_tokens=read_integer(data, "max_output_tokens", 1, TOKENS_MAX),
        wishes=replace(wishes, json_schema=_read_text_options(data.get("text"))),
        is_stream=read_boolean(data, "stream"),
        wants_usage=True,
        is_response=True,
        wants_timings=read_own_options(data.get("moectl")),
    )


def _read_instructions(value: Any) -> tuple[Message, ...]:
    if value is None:
        return ()
    return ({"role": "system", "content": read_text(value, "instructions")},)


def _read_input(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": "user", "content": read_text(value, "input")},)
    return read_messages(value, "input")


def _read_text_options(value: Any) -> str | None:
    """The schema of `text.format`, None for free text."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("text", "an object", value)
    form = value.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return drawing.read_schema(form.get("schema"), "text.format.schema")
    if isinstance(form, dict) and form.get("type") not in ("text", "json_object"):
        raise invalid("text.format.type must be text, json_object or json_schema", "text.format")
    return drawing.read_response_format(form, "text.format")


@dataclass(slots=True)
class _Written:
    """What a stream has told so far."""

    number: int = 0
    text: str = ""
    reason: str = ""


class ResponseShape:
    """The form of a response, whole or streamed."""

    def __init__(self, head: Head, ask: Ask) -> None:
        self.request_id = head.request_id
        self._head = head
        self._ask = ask
        self._item_id = head.request_id.replace("resp", "msg", 1)
        self._written = _Written()

    def opening(self, _index: int) -> list[bytes]:
        """The response, its one message and its one part begin."""
        begun = self._body("in_progress", [])
        item = self._message("in_progress", None)
        part = {"part": _part("")}
        return [
            self._event("response.created", {"response": begun}),
            self._event("response.in_progress", {"response": begun}),
            self._event("response.output_item.added", {"output_index": 0, "item": item}),
            self._event("response.content_part.added", self._where() | part),
        ]

    def piece(self, _index: int, piece: Piece) -> list[bytes]:
        """New text."""
        self._written.text += piece.text
        delta = {"delta": piece.text, "logprobs": []}
        return [self._event("response.output_text.delta", self._where() | delta)]

    def ending(self, _index: int, reason: str) -> list[bytes]:
        """The text, its part and its message are over."""
        written = self._written
        written.reason = reason
        text = {"text": written.text, "logprobs": []}
        item = self._message(_status(reason), written.text)
        part = {"part": _part(written.text)}
        return [
            self._event("response.output_text.done", self._where() | text),
            self._event("response.content_part.done", self._where() | part),
            self._event("response.output_item.done", {"output_index": 0, "item": item}),
        ]

    def closing(self, ending: Ending) -> list[bytes]:
        """The whole response once more."""
        kept = Collected(0, [self._written.text], reason=self._written.reason)
        status = _status(kept.reason)
        return [self._event(f"response.{status}", {"response": self.whole([kept], ending)})]

    def failure(self, error: ApiError) -> list[bytes]:
        """The clients raise on this event."""
        plain = error.body()["error"]
        return [self._event("error", {name: plain[name] for name in ("code", "message", "param")})]

    def whole(self, choices: Sequence[Collected], ending: Ending) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        (choice,) = choices
        status = _status(choice.reason)
        body = self._body(status, [self._message(status, "".join(choice.texts))])
        if status == "incomplete":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        usage = ending.usage
        body["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return body | {"moectl": ending.extension}

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        ask, head = self._ask, self._head
        return {
            "id": head.request_id,
            "object": "response",
            "created_at": head.created,
            "status": status,
            "model": head.model,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": ask.max_tokens,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": ask.wishes.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": ask.wishes.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [_part(text)],
        }

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        number, self._written.number = self._written.number, self._written.number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(reason: str) -> str:
    return "incomplete" if reason == "length" else "completed"
