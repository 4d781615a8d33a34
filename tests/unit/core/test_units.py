"""Quantities are read exactly and refused with an example."""

import pytest

from moectl.core import units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64MiB", 64 * 2**20),
        ("16KiB", 16384),
        ("1.5GiB", 3 * 2**29),
        ("1GB", 10**9),
        ("7B", 7),
        ("4096", 4096),
        (4096, 4096),
        (" 2 TiB ", 2**41),
        ("0", 0),
    ],
)
def test_bytes_are_read_exactly(text: str | int, count: int) -> None:
    assert units.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e3", "64 mib", "64MiBs", "0x10", "١MiB", True])
def test_what_is_not_bytes_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(units.BytesError, match="such as 64GiB"):
        units.parse_bytes(text)


def test_negative_and_endless_quantities_are_refused() -> None:
    with pytest.raises(units.BytesError, match="negative"):
        units.parse_bytes(-1)
    with pytest.raises(units.BytesError, match="longer than"):
        units.parse_bytes("9" * 100_000)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("80ms", 0.08),
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("1h 5m", 3900.0),
        ("10us", 1e-5),
    ],
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "ms", "5 parsecs", "1:30", "-5s", "5s!", "s5"])
def test_what_is_not_a_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(units.DurationError, match="such as 80ms"):
        units.parse_duration_s(text)


def test_a_duration_without_a_unit_is_refused_with_both_readings() -> None:
    with pytest.raises(units.DurationError, match="write 5s or 5ms"):
        units.parse_duration_s(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "count"), [("1Mi", 2**20), ("128Ki", 131072), ("3k", 3000), (7, 7)]
)
def test_counts_are_read_exactly(text: str | int, count: int) -> None:
    assert units.parse_count(text) == count


def test_a_count_has_no_bytes_in_it() -> None:
    with pytest.raises(units.CountError, match="such as 4096"):
        units.parse_count("1MiB")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (16384, "16KiB"),
        (3 * 2**29, "1.5GiB"),
        (10 * 2**20 + 5, "10MiB"),
    ],
)
def test_bytes_are_shown_short(count: int, text: str) -> None:
    assert units.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.08, "80ms"),
        (2.5, "2.5s"),
        (59.97, "1m00s"),
        (90, "1m30s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (0.0000015, "1.5us"),
        (0.9999, "1s"),
        (-2, "-2s"),
        (float("inf"), "unknown"),
    ],
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(950, "950"), (12345, "12.3k"), (4_560_000, "4.56M")])
def test_counts_are_shown_short(count: int, text: str) -> None:
    assert units.format_count(count) == text
