"""Documents that name commands, options, targets and files name ones that exist.

Only code counts: text between backticks, fenced blocks and indented blocks.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from moectl.cli import main as cli_main

FOLDERS = "core|clusters|placement|memory|kernels|controller|agents|cli|tests|docs"
FILE = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]+\.(?:py|md|yaml|json|c|h|tcss|png))")
COMMAND = re.compile(r"\bmoectl ([a-z][a-z-]*)([^\n|;&#`]*)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")
TARGET = re.compile(r"\bmake ([a-z]+)\b")


def _documents(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])


def _code(text: str) -> Iterator[str]:
    """The pieces of a document that are code."""
    fenced = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    yield from (match.group(1) for match in fenced.finditer(text))
    rest = fenced.sub("", text)
    yield from re.findall(r"`([^`\n]+)`", rest)
    yield from re.findall(r"^(?: {4}|\t)(.*)$", rest, re.MULTILINE)


def _pieces(root: Path) -> Iterator[tuple[str, str]]:
    for document in _documents(root):
        for piece in _code(document.read_text(encoding="utf-8")):
            yield document.name, piece


def _parameters(command: Any) -> set[str]:
    """The options of one command; the tool's own that every command has are among them."""
    options = {option for parameter in command.params for option in parameter.opts}
    options |= {option for parameter in command.params for option in parameter.secondary_opts}
    return options | {"--help"}


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    found: dict[str, Any] = get_command(cli_main.build_app()).commands  # type: ignore[attr-defined]
    return found


def test_every_command_and_option_in_the_documents_exists(
    root: Path, commands: dict[str, Any]
) -> None:
    wrong = []
    for name, piece in _pieces(root):
        for word, rest in COMMAND.findall(piece):
            command = commands.get(word)
            if command is None:
                wrong.append(f"{name}: moectl {word}")
                continue
            inner = getattr(command, "commands", None)
            if inner is not None and rest.split():
                command = inner.get(rest.split()[0])
                if command is None:
                    wrong.append(f"{name}: moectl {word}{rest}")
                    continue
            unknown = set(OPTION.findall(rest)) - _parameters(command)
            wrong += [f"{name}: moectl {word} {option}" for option in sorted(unknown)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_make_target_in_the_documents_exists(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {(name, word) for name, piece in _pieces(root) for word in TARGET.findall(piece)}
    assert sorted((name, word) for name, word in named if word not in targets) == []


def test_every_file_in_the_documents_exists(root: Path) -> None:
    named = {(name, path) for name, piece in _pieces(root) for path in FILE.findall(piece)}
    assert sorted((name, path) for name, path in named if not (root / path).exists()) == []


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    wrong = []
    for document in _documents(root):
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if "://" not in link and not (document.parent / link).exists():
                wrong.append(f"{document.name}: {link}")
    assert not wrong, "\n" + "\n".join(wrong)
