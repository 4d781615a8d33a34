"""How quantities are written and read: bytes, durations and counts.

Every quantity that a person types goes through here, so that `64GiB` means one thing in a spec, on
the command line and in an error. Pure functions; the standard library only. Never guesses: a number
without a unit is bytes for bytes and a count for counts, but refused for durations, because `5` has
meant milliseconds in one tool and seconds in the next.
"""

import math
import re
from fractions import Fraction

BYTES_OF_UNIT = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
SECONDS_OF_UNIT = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
COUNT_OF_UNIT = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
COUNT_OF_UNIT |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

BINARY_UNITS = ("TiB", "GiB", "MiB", "KiB")  # largest first, the ones we write
DURATION_UNITS = ("h", "m", "s", "ms", "us", "ns")

# Long enough for any honest quantity; a limit, because the digits of a spec come from outside.
TEXT_LENGTH_MAX = 40
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*", re.ASCII)
_DURATION_PIECE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", re.ASCII)


class UnitError(ValueError):
    """A quantity cannot be read; `fix` shows one that can."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}; {fix}")
        self.reason = reason
        self.fix = fix


class BytesError(UnitError):
    """Not an amount of bytes."""


class DurationError(UnitError):
    """Not a duration."""


class CountError(UnitError):
    """Not a count."""


BYTES_FIX = "write a number with a unit, such as 64GiB, 16KiB or 1.5GB"
DURATION_FIX = "write a number with a unit, such as 80ms, 5s or 1m30s"
COUNT_FIX = "write a whole number, such as 4096, 128Ki or 1Mi"


def parse_bytes(text: str | int) -> int:
    """Read `64MiB` (binary), `64MB` (decimal) or a plain number of bytes; raises BytesError."""
    return _whole(text, BYTES_OF_UNIT | {"": 1}, BytesError, BYTES_FIX)


def parse_count(text: str | int) -> int:
    """Read `1Mi` (binary), `1M` (decimal) or a plain whole number; raises CountError."""
    return _whole(text, COUNT_OF_UNIT, CountError, COUNT_FIX)


def parse_duration_s(text: str) -> float:
    """Read `80ms`, `5s` or `1m30s` as seconds; raises DurationError, also when there is no unit."""
    if not isinstance(text, str):
        fix = f"write {text}s or {text}ms" if type(text) in (int, float) else DURATION_FIX
        raise DurationError(f"{text!r} is not a duration (a unit is missing)", fix)
    _check_length(text, DurationError, DURATION_FIX)
    rest, total = text.strip(), Fraction(0)
    if not rest:
        raise DurationError("an empty text is not a duration", DURATION_FIX)
    while rest:
        piece = _DURATION_PIECE.match(rest)
        if piece is None:
            raise DurationError(f"{text!r} is not a duration", DURATION_FIX)
        number, unit = piece.groups()
        if unit not in SECONDS_OF_UNIT:
            known = ", ".join(SECONDS_OF_UNIT)
            raise DurationError(f"{unit!r} is not a unit of time ({known})", DURATION_FIX)
        total += Fraction(number) * SECONDS_OF_UNIT[unit]
        rest = rest[piece.end() :]
    return float(total)


def format_bytes(count: int) -> str:
    """Bytes for a person: three digits at least, so within 1 % of `count`; exact when it can be."""
    for unit in BINARY_UNITS:
        size = BYTES_OF_UNIT[unit]
        if abs(count) >= size:
            return f"{_short(count / size)}{unit}"
    return f"{count}B"


def exact_bytes(count: int) -> str:
    """Bytes for a file: `parse_bytes` gives back exactly `count` (which is not negative)."""
    for unit in BINARY_UNITS:
        size = BYTES_OF_UNIT[unit]
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return f"{count}B"


def format_duration(seconds: float) -> str:
    """A duration for a person: `80ms`, `2.5s`, `1m30s`, `2h05m`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if round(seconds) >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60}h{minutes % 60:02d}m"
    if seconds >= 59.95:
        whole = round(seconds)
        return f"{whole // 60}m{whole % 60:02d}s"
    for unit in ("s", "ms", "us", "ns"):
        amount = seconds / float(SECONDS_OF_UNIT[unit])
        if amount >= 0.9995:  # the next unit down would be shown as 1000
            return f"{_short(amount)}{unit}"
    return "0s"


def exact_duration(seconds: float) -> str:
    """A duration for a file: to the nanosecond, in the largest unit that holds it as a whole."""
    nanoseconds = round(seconds * 10**9)
    for unit in DURATION_UNITS:
        size = int(SECONDS_OF_UNIT[unit] * 10**9)
        if nanoseconds and nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return "0s"


def format_count(count: int) -> str:
    """A count for a person: `950`, `12.3k`, `4.56M`."""
    for unit in ("G", "M", "k"):
        size = COUNT_OF_UNIT[unit]
        if abs(count) >= size:
            return f"{_short(count / size)}{unit}"
    return str(count)


def _whole(text: str | int, factors: dict[str, int], error: type[UnitError], fix: str) -> int:
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise error(f"{text} is negative", fix)
        return text
    if not isinstance(text, str):
        raise error(f"{text!r} is not a quantity", fix)
    _check_length(text, error, fix)
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise error(f"{text!r} is not a quantity", fix)
    number, unit = match.groups()
    if unit not in factors:
        known = ", ".join(name for name in factors if name)
        raise error(f"{unit!r} is not a unit here ({known})", fix)
    return round(Fraction(number) * factors[unit])


def _check_length(text: str, error: type[UnitError], fix: str) -> None:
    if len(text) > TEXT_LENGTH_MAX:
        raise error(
            f"{text[:TEXT_LENGTH_MAX]!r}... is longer than {TEXT_LENGTH_MAX} characters", fix
        )


def _short(amount: float) -> str:
    """At most two decimals and no trailing zeros; whole above 100."""
    decimals = 0 if abs(amount) >= 100 else 1 if abs(amount) >= 10 else 2
    text = f"{amount:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
