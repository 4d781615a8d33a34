"""Files, functions and signatures stay small enough to be read in one go.

A listed exception may only shrink: when the thing gets smaller, the number here must follow it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 6
# A command's signature is its list of options: the command line sets the number of them.
COMMAND_PARAMETERS_MAX = 12
COLUMNS_MAX = 100
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "stuff", "manager"}

# "path" or "path::function" -> (what, size). Empty is the aim.
RATCHET: dict[str, tuple[str, int]] = {}


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _functions(node, f"{prefix}{node.name}.")
        else:
            yield from _functions(node, prefix)


def _parameter_count(function: Any) -> int:
    """All parameters but self and cls, keyword-only ones too."""
    parts = function.args
    names = [*parts.posonlyargs, *parts.args, *parts.kwonlyargs]
    names += [star for star in (parts.vararg, parts.kwarg) if star is not None]
    return len([name for name in names if name.arg not in ("self", "cls")])


def _over(everything: list[Any]) -> dict[str, tuple[str, int]]:
    """Everything above a ceiling."""
    found: dict[str, tuple[str, int]] = {}
    for source in everything:
        if source.is_generated:
            continue
        lines = source.text.count("\n")
        if lines > FILE_LINES_MAX:
            found[source.path] = ("lines", lines)
        is_command = source.path.startswith("cli/commands/")
        for name, function in _functions(source.tree):
            length = function.end_lineno - function.lineno + 1
            if length > FUNCTION_LINES_MAX:
                found[f"{source.path}::{name}"] = ("lines", length)
            count = _parameter_count(function)
            if count > (COMMAND_PARAMETERS_MAX if is_command else PARAMETERS_MAX):
                found[f"{source.path}::{name}"] = ("parameters", count)
    return found


def test_nothing_is_larger_than_its_ceiling_and_exceptions_only_shrink(
    everything: list[Any],
) -> None:
    found = _over(everything)
    changed = {name for name in {*found, *RATCHET} if found.get(name) != RATCHET.get(name)}
    assert not changed, "\n" + "\n".join(
        f"{name}: is {found.get(name, 'small')}, listed {RATCHET.get(name, 'not')}"
        for name in sorted(changed)
    )


def test_lines_are_at_most_100_columns(everything: list[Any], root: Path) -> None:
    texts = {source.path: source.text for source in everything if not source.is_generated}
    for pattern in ("kernels/*.c", "kernels/*.h", "cli/tui/*.tcss"):
        texts |= {path.name: path.read_text(encoding="utf-8") for path in root.glob(pattern)}
    wrong = [
        f"{path}:{number}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_file_names_say_what_is_inside(product: list[Any]) -> None:
    vague = [s.path for s in product if VAGUE_NAMES & set(Path(s.path).stem.split("_"))]
    assert vague == []


def test_test_files_have_names_of_their_own(everything: list[Any]) -> None:
    names = [Path(s.path).name for s in everything if Path(s.path).name.startswith("test_")]
    assert sorted(set(names)) == sorted(names)


def test_every_file_says_which_question_it_answers(product: list[Any]) -> None:
    silent = [s.path for s in product if s.text.strip() and ast.get_docstring(s.tree) is None]
    assert [path for path in silent if not path.endswith("_pb2.py")] == []


def test_public_functions_and_classes_say_what_they_do(product: list[Any]) -> None:
    silent = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in product
        if not source.is_generated
        for node in source.tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert not silent, "\n" + "\n".join(silent)
