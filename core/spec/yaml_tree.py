"""YAML as plain values that remember the line each of them stands on.

Reads with PyYAML's safe tags only, so a file can never make an object or run code. Duplicated keys,
which YAML readers usually pass over, are findings; so are keys that are not text, and anything
deeper or larger than a spec can be (aliases that unfold without end).
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

from .values import Finding, Path

DEPTH_MAX = 40
VALUES_MAX = 1_000_000  # 10,000 nodes of 8 devices are about 500,000 values
_INDENT_FIX = "indent with spaces, close every quote and bracket, and put a space after each colon"


@dataclass(slots=True)
class Tree:
    """One document: its value, the line of every path in it, and what is wrong with its form."""

    value: Any
    first_line: int
    lines: dict[Path, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def line_of(self, path: Path) -> int:
        """The line of a path, or of the nearest thing around it that stands in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.first_line)


class YamlSyntaxError(ValueError):
    """The text is not YAML; `line` is 1-based."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason
        self.fix = _INDENT_FIX


def read_trees(text: str) -> tuple[list[Tree], YamlSyntaxError | None]:
    """Every document up to the first syntax error, and that error."""
    trees: list[Tree] = []
    loader = yaml.SafeLoader(text) if _is_readable(text) else None
    if loader is None:
        return trees, YamlSyntaxError(1, "the file holds characters that YAML does not allow")
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None and not _is_nothing(node):
                trees.append(_Reader(loader, node).tree)
    except (yaml.MarkedYAMLError, RecursionError) as error:
        return trees, _syntax_error(error)
    finally:
        loader.dispose()
    return trees, None


def _is_readable(text: str) -> bool:
    return yaml.reader.Reader.NON_PRINTABLE.search(text) is None


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _syntax_error(error: Exception) -> YamlSyntaxError:
    if not isinstance(error, yaml.MarkedYAMLError):
        return YamlSyntaxError(1, "nested too deeply")
    mark = error.problem_mark or error.context_mark
    parts = [part for part in (error.context, error.problem) if part]
    return YamlSyntaxError(mark.line + 1 if mark else 1, ", ".join(parts) or "not YAML")


class _Reader:
    """Turns one node tree into values, depth first."""

    def __init__(self, loader: yaml.SafeLoader, root: yaml.Node) -> None:
        self._loader = loader
        self._left = VALUES_MAX
        self.tree = Tree(None, root.start_mark.line + 1)
        self.tree.value = self._value(root, ())

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self.tree.lines.setdefault(path, node.start_mark.line + 1)
        self._left -= 1
        if len(path) > DEPTH_MAX or self._left < 0:
            if not any(finding.reason.startswith("too") for finding in self.tree.findings):
                self._find(path, "too deep or too large for a spec", "remove the aliases, or split")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self._find(path, f"a key on line {line} is not text", "use plain words as keys")
                continue
            if key in result:
                first = self.tree.lines[(*path, key)]
                where = (*path, key)
                self._find(where, f"{key!r} stands here twice, first on line {first}", "keep one")
                self.tree.lines[where] = line
                continue
            self.tree.lines[(*path, key)] = line
            result[key] = self._value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            value = self._loader.construct_object(node)
        except (yaml.MarkedYAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or str(error)
            self._find(path, f"{node.value!r} cannot be read: {problem}", "quote it, or mend it")
            return None
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        return str(node.value)  # dates and the like: a spec has none, so they stay text

    def _find(self, path: Path, reason: str, fix: str) -> None:
        self.tree.findings.append(Finding(path, reason, fix))
