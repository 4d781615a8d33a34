"""`moectl --help` is the first thing a newcomer waits for: it must import nothing heavy.

Time is measured by people and benches; here only what is imported counts.
"""

import json
import subprocess
import sys

import pytest
from typer.main import get_command

from moectl.cli import main as cli_main

HEAVY = ["torch", "ray", "transformers", "fastapi", "textual", "grpc", "matplotlib"]

PROBE = """
import io, json, sys
from contextlib import redirect_stdout
from moectl.cli.main import main
sys.argv = json.loads(sys.argv[1])
shown = io.StringIO()
try:
    with redirect_stdout(shown):
        main()
except SystemExit as end:
    code = end.code or 0
heavy = sorted(set(json.loads(sys.stdin.read())) & set(sys.modules))
print(json.dumps({"code": code, "heavy": heavy, "text": shown.getvalue()}))
"""


def _run(*arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, json.dumps(["moectl", *arguments])],
        input=json.dumps(HEAVY),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def _commands() -> list[str]:
    return sorted(get_command(cli_main.build_app()).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["scale", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    result = _run(*arguments)
    assert (result["code"], result["heavy"]) == (0, [])


def test_help_names_every_command() -> None:
    text = str(_run("--help")["text"])
    assert [name for name in _commands() if name not in text] == []


def test_every_command_explains_itself() -> None:
    commands = get_command(cli_main.build_app()).commands  # type: ignore[attr-defined]
    assert [name for name, command in commands.items() if not command.get_short_help_str()] == []
