"""What the house tests look at: the product's source files as text and syntax trees."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "clusters", "placement", "memory", "kernels", "controller", "agents", "cli")


@dataclass(frozen=True)
class Source:
    """One Python file. `path` is relative to the root, with slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        return self.path.split("/")[0]

    @property
    def module(self) -> str:
        """`core/spec/load.py` -> `core.spec.load`; a package is its folder."""
        parts = self.path.removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def is_generated(self) -> bool:
        return self.path.endswith("_pb2.py")


@dataclass(frozen=True)
class Import:
    """One imported module, as `room.module` when it is ours (`is_ours`), lazily or not."""

    name: str
    is_ours: bool
    line: int
    is_for_types: bool
    is_absolute: bool


def _read(folder: Path) -> Iterator[Source]:
    for path in sorted(folder.rglob("*.py")):
        yield Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


def imports_of(source: Source, known: frozenset[str]) -> list[Import]:
    """Every import of a file, inside functions too; `known` are all modules of the product."""
    for_types = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, is_ours in _targets(source, node, known):
                absolute = is_ours and (isinstance(node, ast.Import) or node.level == 0)
                found.append(Import(name, is_ours, node.lineno, id(node) in for_types, absolute))
    return found


def _targets(
    source: Source, node: ast.Import | ast.ImportFrom, known: frozenset[str]
) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield _named(alias.name)
        return
    if node.level == 0:
        base, is_ours = _named(node.module or "")
        if not is_ours:
            yield base, False
            return
    else:
        package = source.module.split(".")
        if not source.path.endswith("__init__.py"):
            package = package[:-1]
        kept = len(package) - (node.level - 1)
        assert kept >= 0, f"{source.path}:{node.lineno}: the import leaves the package"
        base = ".".join([*package[:kept], *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}" if base else alias.name
        yield (inner if inner in known else base), True


def _named(name: str) -> tuple[str, bool]:
    if name == "moectl" or name.startswith("moectl."):
        return name.removeprefix("moectl").removeprefix("."), True
    return name, False


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def product() -> list[Source]:
    """Every Python file of the rooms."""
    return [source for room in ROOMS for source in _read(ROOT / room)]


@pytest.fixture(scope="session")
def everything(product: list[Source]) -> list[Source]:
    """The product and its tests."""
    return [*product, *_read(ROOT / "tests")]


@pytest.fixture(scope="session")
def imports(product: list[Source]) -> dict[str, list[Import]]:
    """Module -> its imports, for every module of the product."""
    known = frozenset(source.module for source in product)
    return {source.module: imports_of(source, known) for source in product}


@pytest.fixture(scope="session")
def read_imports() -> Callable[[str, str], list[Import]]:
    """(path, text) -> its imports, for testing this reader itself."""
    known = frozenset({"core", "core.plan", "memory", "memory.pool", "placement.search"})
    return lambda path, text: imports_of(Source(path, text), known)
