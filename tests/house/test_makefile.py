"""Two commands are all it takes, and every target says what it does."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TARGETS = {"setup", "demo", "test", "lint", "bench", "soak", "gpu", "clean", "help"}
RECIPE_LINES_MAX = 10


@pytest.fixture(scope="module")
def makefile(root: Path) -> str:
    return (root / "Makefile").read_text(encoding="utf-8")


def test_every_target_is_there_and_documented(makefile: str) -> None:
    documented = set(re.findall(r"^([a-z]+):.*## \w+", makefile, re.MULTILINE))
    named = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert (documented, named) == (TARGETS, TARGETS)


def test_no_recipe_is_longer_than_ten_lines(makefile: str) -> None:
    recipes = re.findall(r"^\S[^\n]*:[^\n=]*\n((?:\t[^\n]*\n)+)", makefile, re.MULTILINE)
    assert recipes
    assert max(recipe.count("\n") for recipe in recipes) < RECIPE_LINES_MAX


def test_ci_runs_what_a_developer_runs(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")


def test_make_help_lists_every_target(root: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make on this machine")
    shown = subprocess.run(
        [make, "--no-print-directory", "help"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()} == TARGETS
