"""Every command in the README works as it stands there, in the order a newcomer meets it."""

import re
import shlex
from collections.abc import Iterator

import pytest
from embedded_fleet import FREE_PORTS, ROOT, Fleet, fleet_home, in_terminal

pytestmark = pytest.mark.timeout(300)
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"```(?:sh|bash|console)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:\.venv/bin/)?moectl [^`\n]+)`")
PROGRAMS = ("moectl", ".venv/bin/moectl")


def fenced_lines() -> list[list[str]]:
    """Every line of the shell blocks, split as a shell would, comments dropped."""
    lines = [
        line.removeprefix("$ ") for block in FENCE.findall(README) for line in block.splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def moectl_commands() -> list[list[str]]:
    """Arguments of every moectl command, `up` first and `down` last, each once."""
    inline = [shlex.split(text) for text in INLINE.findall(README)]
    found = [words[1:] for words in [*fenced_lines(), *inline] if words[0] in PROGRAMS]
    unique = [words for index, words in enumerate(found) if words not in found[:index]]
    between = [words for words in unique if words[0] not in ("up", "down", "demo")]
    return [["up"], *between, ["down"]]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with fleet_home() as found:
        yield found


@pytest.mark.parametrize("words", moectl_commands(), ids=" ".join)
def test_command(words: list[str], fleet: Fleet) -> None:
    if words[0] == "top":
        code, _ = in_terminal(fleet, words, "q", until="Experts")
        assert code == 0
        return
    answer = fleet.run(*words, *(FREE_PORTS if words[0] == "up" else []))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.strip()


def test_the_readme_shows_the_main_job() -> None:
    verbs = {words[0] for words in moectl_commands()}
    assert {"up", "status", "chat", "scale", "top", "down"} <= verbs


def test_every_make_target_in_the_readme_exists_and_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words in fenced_lines() if words[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:.*## \w", makefile, re.MULTILINE), target


def test_every_program_in_the_readme_is_known_to_these_tests() -> None:
    assert {words[0] for words in fenced_lines()} <= {"make", *PROGRAMS}


def test_every_file_that_the_readme_links_to_exists() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
