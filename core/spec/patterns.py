"""Which texts mean a whole number between two bounds? Regular expressions, for the JSON Schema.

A schema has no arithmetic on text, so that `1Mi` is too large for a limit of 65536 has to be said
by the pattern itself: one range of whole numbers for each unit. Pure.
"""

from typing import Any

from pydantic import WithJsonSchema

from ..units import COUNT_OF_UNIT


def count_schema(least: int, most: int | None = None) -> WithJsonSchema:
    """The schema of a count within bounds: a number, or text with a unit and no fraction."""
    number: dict[str, Any] = {"type": "integer", "minimum": least}
    if most is not None:
        number["maximum"] = most
    text = {"type": "string", "pattern": count_pattern(least, most), "examples": ["1Ki"]}
    return WithJsonSchema({"anyOf": [number, text]})


def count_pattern(least: int, most: int | None) -> str:
    """Texts such as "64" or "1Ki" whose value lies between the bounds."""
    branches = []
    for unit, size in COUNT_OF_UNIT.items():
        low = -(-least // size)
        if most is None:
            branches.append(f"{_at_least(low)}\\s*{unit}")
        elif most // size >= low:
            branches.append(f"(?:{'|'.join(_between(low, most // size))})\\s*{unit}")
    return f"^\\s*0*(?:{'|'.join(branches)})\\s*$"


def _at_least(low: int) -> str:
    """Numbers from `low` on; `low` has one digit in every spec there is."""
    assert 0 < low < 10, low
    return f"(?:[{low}-9]|[1-9][0-9]+)"


def _between(low: int, high: int) -> list[str]:
    """Patterns that together match the whole numbers from low to high, without leading zeros."""
    if low > high:
        return []
    found, start = [], low
    while start <= high:
        end, digits = start, 0
        # The longest run of free last digits that begins here: 120 -> 120-129 -> 100-199 ...
        while start % 10 ** (digits + 1) == 0 and start + 10 ** (digits + 1) - 1 <= high and start:
            digits += 1
            end = start + 10**digits - 1
        head = str(start // 10**digits)
        last = int(head[-1])
        while last < 9 and end + 10**digits <= high:  # 3xx to 7xx are one class of digits
            last, end = last + 1, end + 10**digits
        one = head[:-1] + (f"[{head[-1]}-{last}]" if last != int(head[-1]) else head[-1])
        found.append(one + "[0-9]" * digits)
        start = end + 1
    return found
