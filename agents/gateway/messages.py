"""What is said in a conversation? Chat messages checked, and reduced to what a template reads.

Pure. Text only: another kind of content is refused by name. Fields that clients send back unchanged
from an earlier answer are accepted while they are empty.
"""

from typing import Any

from .api_errors import invalid
from .fields import read_text, wrong_type

MESSAGES_MAX = 16384
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_EMPTY_FIELDS = ("refusal", "tool_calls", "function_call", "audio", "annotations", "tool_call_id")
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})  # the last two: /v1/responses

Message = dict[str, Any]


def read_messages(value: Any, where: str = "messages") -> tuple[Message, ...]:
    """The messages of a conversation; raises ApiError naming the place."""
    if value is None:
        raise invalid(f"you must provide {where}", where, code="missing_parameter")
    if not isinstance(value, list):
        raise wrong_type(where, "an array", value)
    if not 0 < len(value) <= MESSAGES_MAX:
        raise invalid(f"{where!r} must hold 1 to {MESSAGES_MAX} messages", where)
    return tuple(_read_message(item, f"{where}[{at}]") for at, item in enumerate(value))


def _read_message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    for name in value:
        known = name in ("role", "content", "name") or (name, value[name]) == ("type", "message")
        kept = name in ("id", "status") and isinstance(value[name], str)  # of an earlier answer
        if not (known or kept) and not (name in _EMPTY_FIELDS and value[name] in (None, [], "")):
            raise invalid(f"{where}.{name[:100]} is not supported", f"{where}.{name[:100]}")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(sorted(_ROLES))}", f"{where}.role")
    message = {
        "role": "system" if role == "developer" else role,
        "content": _read_content(value.get("content"), f"{where}.content"),
    }
    if value.get("name") is not None:
        message["name"] = read_text(value["name"], f"{where}.name")
    return message


def _read_content(value: Any, where: str) -> str:
    """A string, or an array of text parts, which are joined."""
    if isinstance(value, str):
        return read_text(value, where)
    if not isinstance(value, list):
        raise wrong_type(where, "a string or an array of text parts", value)
    return "".join(_read_part(part, f"{where}[{at}]") for at, part in enumerate(value))


def _read_part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise wrong_type(where, "an object", part)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise invalid(f"{where}.type must be 'text': this model reads text only", where)
    return read_text(part.get("text"), f"{where}.text")
