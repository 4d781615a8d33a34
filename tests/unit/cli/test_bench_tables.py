"""A bench's tables can be read on any terminal: wide ones are turned, and cut between cases."""

import pytest

from moectl.cli.bench.frame import BenchResult, print_tables

ROWS = {
    f"moectl {case}": {f"a_rather_long_key_{number}": number * 1.5 for number in range(14)}
    for case in ("2->4", "4->2", "4->3", "3->2")
}


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_every_key_case_and_value_is_printed_whole(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    print_tables(BenchResult("scale", 7, ROWS, {"ready_s": 1.0}))
    text = capsys.readouterr().out
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for name, row in ROWS.items():
        assert name in text
        for key, value in row.items():
            assert text.count(key) >= 1
            assert f" {value:.4g} " in text


def test_a_table_that_fits_has_a_case_on_every_line(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_tables(BenchResult("x", 1, {"one": {"a": 1.0}, "two": {"a": 2.0}}, {}))
    lines = capsys.readouterr().out.splitlines()
    assert any("one" in line and "two" not in line for line in lines)
