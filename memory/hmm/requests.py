"""What may a client's request contain, and how is it refused when it does not?

Every field is checked for type, size and range before anything is built from it: a request is
foreign data, even from a process of the same user. What makes no sense is a ProtocolError; what
names pages that cannot exist, a MappingError. Standard library only, no state.
"""

from typing import Any

from ...core.errors import MappingError, ProtocolError
from ..arbiter import Claim
from ..backend import DeviceHandle, PageRun, coalesce, expand
from . import wire

NAME_BYTES_MAX = 200  # of an owner, a layout or a channel
HOLDERS_TOLD_MAX = 64  # a refusal names at most so many holders
NUMBERS_MAX = 1024  # reservations that one request may name

Message = dict[str, Any]


def text_of(request: Message, key: str) -> str:
    """A name of 1 to NAME_BYTES_MAX printable ASCII characters."""
    value = request.get(key)
    if not isinstance(value, str) or not _is_name(value):
        raise ProtocolError(f"{key!r} must be 1 to {NAME_BYTES_MAX} printable ASCII characters")
    return value


def count_of(request: Message, key: str) -> int:
    """A count below 2**62."""
    value = request.get(key)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ProtocolError(f"{key!r} must be a count")
    return value


def pages_of(request: Message, handle: DeviceHandle, key: str = "pages") -> tuple[int, ...]:
    """Pages sent as runs; their sum is checked before anything of that size is built."""
    runs: list[PageRun] = []
    value = request.get(key)
    for entry in value if isinstance(value, list) else [None]:
        numbers = entry if isinstance(entry, list) else []
        if len(numbers) != 2 or any(type(number) is not int for number in numbers):
            raise ProtocolError(f"{key!r} must be a list of [first, count]")
        runs.append(PageRun(*numbers))
    total = sum(run.count for run in runs)
    if any(run.first < 0 or run.count < 1 for run in runs) or total > handle.page_count:
        raise MappingError(
            f"device {handle.device_id} has no such pages: {total} in {len(runs)} runs"
        )
    return expand(runs)


def layouts_of(request: Message, key: str) -> dict[str, Message]:
    """Layouts by name."""
    value = request.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(plain, dict) for plain in value.values()):
        raise ProtocolError(f"{key!r} must map names to layouts")
    if not all(_is_name(name) for name in value):
        raise ProtocolError(f"a layout's name is 1 to {NAME_BYTES_MAX} printable ASCII characters")
    return value


def names_of(request: Message, key: str) -> list[str]:
    """A list of names."""
    value = request.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ProtocolError(f"{key!r} must be a list of names")
    return value


def numbers_of(request: Message, key: str) -> list[int]:
    """A short list of counts."""
    value = request.get(key, [])
    if not isinstance(value, list) or len(value) > NUMBERS_MAX:
        raise ProtocolError(f"{key!r} must be a list of at most {NUMBERS_MAX} numbers")
    if any(type(number) is not int for number in value):
        raise ProtocolError(f"{key!r} must be a list of numbers")
    return value


def claims_of(request: Message, key: str) -> dict[str, Claim]:
    """Claims by party, each [guarantee in pages, weight]."""
    value = request.get(key)
    if not isinstance(value, dict) or not all(_is_name(name) for name in value):
        raise ProtocolError(f"{key!r} must map parties to [guarantee, weight]")
    claims: dict[str, Claim] = {}
    for party, entry in value.items():
        numbers: list[Any] = entry if isinstance(entry, list) and len(entry) == 2 else [None, None]
        if type(numbers[0]) is not int or type(numbers[1]) not in (int, float):
            raise ProtocolError(f"{key!r} must map parties to [guarantee, weight]")
        claims[party] = Claim(numbers[0], float(numbers[1]))
    return claims


def runs_of(pages: tuple[int, ...]) -> list[list[int]]:
    """Pages as they are sent: runs of consecutive ones."""
    return [[run.first, run.count] for run in coalesce(pages)]


def error_body(error: Exception) -> Message:
    """An error as a reply: class, text, and the fields to rebuild it from."""
    body: Message = {
        "type": type(error).__name__,
        "message": str(getattr(error, "message", error))[: wire.GREETING_BYTES_MAX],
        "next_step": getattr(error, "next_step", ""),
    }
    holders = getattr(error, "holders", None)
    if holders is not None:
        largest = sorted(holders.items(), key=lambda item: (-item[1], item[0]))[:HOLDERS_TOLD_MAX]
        body |= {
            "device": getattr(error, "device", ""),
            "needed": getattr(error, "needed_pages", 0),
            "free": getattr(error, "free_pages", 0),
            "holders": dict(largest),
        }
    return body


def _is_name(value: str) -> bool:
    return 1 <= len(value) <= NAME_BYTES_MAX and value.isascii() and value.isprintable()
