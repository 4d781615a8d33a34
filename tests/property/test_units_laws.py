"""Quantities survive being written and read again."""

from hypothesis import given
from hypothesis import strategies as st

from moectl.core import units

BYTES = st.integers(min_value=0, max_value=2**62)


@given(BYTES)
def test_bytes_written_for_a_file_read_back_exactly(count: int) -> None:
    assert units.parse_bytes(units.exact_bytes(count)) == count


@given(BYTES)
def test_bytes_written_for_a_person_are_within_one_percent(count: int) -> None:
    assert abs(units.parse_bytes(units.format_bytes(count)) - count) <= 0.01 * count


@given(st.integers(min_value=1, max_value=10**16))
def test_durations_written_for_a_file_read_back_to_the_nanosecond(nanoseconds: int) -> None:
    seconds = nanoseconds / 10**9
    again = units.parse_duration_s(units.exact_duration(seconds))
    assert round(again * 10**9) == round(seconds * 10**9)


@given(st.floats(min_value=1e-8, max_value=1e7))
def test_durations_written_for_a_person_are_near(seconds: float) -> None:
    again = units.parse_duration_s(units.format_duration(seconds))
    assert abs(again - seconds) <= max(0.01 * seconds, 0.51 if seconds > 59 else 0)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_fix(text: str) -> None:
    for parse in (units.parse_bytes, units.parse_count, units.parse_duration_s):
        try:
            assert parse(text) >= 0
        except units.UnitError as error:
            assert error.fix
