"""The command line as a person meets it: help, light imports, exit codes, no tracebacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moectl.cli.main import build_app

COMMANDS = (
    "up", "down", "status", "apply", "get", "scale", "chat", "top", "demo", "doctor", "version",
    "model train", "model init", "model facts",
)  # fmt: skip
HEAVY = ("torch", "ray", "transformers", "fastapi", "textual", "grpc", "pydantic", "httpx", "numpy")


def moectl(*arguments: str, home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MOECTL_HOME": str(home), "COLUMNS": "100", **extra}
    return subprocess.run(
        [sys.executable, "-P", "-m", "moectl.cli.main", *arguments],
        capture_output=True, text=True, timeout=60, env=environment, check=False, cwd=home.parent,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_help_imports_nothing_heavy(home: Path) -> None:
    code = (
        "import sys\nsys.argv = ['moectl', '--help']\nfrom moectl.cli import main\n"
        "try:\n    main.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stderr.strip() == "[]"
    assert "scale" in answer.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(command: str) -> None:
    asked = [*command.split(), "--help"]
    answer = CliRunner().invoke(build_app(), asked, env={"COLUMNS": "100"}, prog_name="moectl")
    assert answer.exit_code == 0
    assert "Examples:" in answer.stdout
    assert f"moectl {command}" in answer.stdout


@pytest.mark.parametrize(
    "arguments,code",
    [
        (("status",), 1),
        (("get", "nodes"), 1),
        (("get", "planets"), 2),
        (("get",), 2),
        (("scale", "chat", "--experts", "many"), 2),
        (("apply", "-f", "nowhere.yaml"), 3),
        (("up", "-f", "nowhere.yaml"), 3),
        (("model", "facts", "nowhere"), 3),
        (("model", "init", "x", "--experts-per-token", "99"), 2),
        (("demo", "--plot", "x.txt"), 3),
        (("top",), 2),
        (("chat", "-m", "hi"), 1),
        (("nonsense",), 2),
        (("down",), 0),
    ],
)
def test_expected_errors_have_exit_codes_and_no_traceback(
    arguments: tuple[str, ...], code: int, home: Path
) -> None:
    answer = moectl(*arguments, home=home)
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    if code:
        assert answer.stderr.strip() and not answer.stdout.strip()


def test_version_is_machine_readable(home: Path) -> None:
    answer = moectl("version", "-o", "json", home=home)
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["fleet"] is None


def test_doctor_says_what_it_found(home: Path) -> None:
    answer = moectl("doctor", "-o", "json", home=home)
    checks = {check["name"]: check for check in json.loads(answer.stdout)}
    assert {"python", "torch", "etcd", "ports", "pages", "leftovers"} <= set(checks)
    assert answer.returncode == (1 if any(c["outcome"] == "fail" for c in checks.values()) else 0)
    assert checks["leftovers"]["outcome"] == "ok"


def test_completion_offers_commands(home: Path) -> None:
    answer = moectl(
        "--show-completion", home=home, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert "Traceback" not in answer.stderr


def test_nothing_is_written_by_commands_that_only_look(home: Path) -> None:
    for arguments in (("status",), ("get", "models"), ("version",), ("down",), ("doctor",)):
        moectl(*arguments, home=home)
    assert not home.exists()
