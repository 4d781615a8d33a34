"""What do all benches share: options, the budget of time, where data lies, and how results look?

A bench is a module of this folder with `run(options) -> BenchResult` and, where there is something
to draw, `draw(result, path)`. The frame prints; a bench never does. The JSON has one shape for all:
{"bench", "commit", "device", "seed", "command", "results", "summary"}. Nothing here knows a bench.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import RefusedError

DATA_VARIABLE = "MOECTL_DATA"
SOURCE_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_BUDGET_S = 15 * 60.0

Results = dict[str, dict[str, float]]


class Shelf:
    """Parts of a long run that are done, kept in a file so that the run can go on where it ended.

    Without a path nothing is kept. What another commit or seed left behind is not used.
    """

    def __init__(self, path: Path | None = None, stamp: str = "") -> None:
        self._path, self._stamp = path, stamp
        self._done: dict[str, Results] = {}
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept.get("stamp") == stamp:
                self._done = kept["done"]

    def part(self, key: str, make: Callable[[], Results]) -> Results:
        """The rows of a part: from the file, or made now and put there."""
        if key not in self._done:
            self._done[key] = make()
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fresh = self._path.with_suffix(".new")
                fresh.write_text(json.dumps({"stamp": self._stamp, "done": self._done}))
                fresh.replace(self._path)
        return self._done[key]

    def clear(self) -> None:
        """The run is over: nothing is left to go on with."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What the person asked for."""

    files: tuple[Path, ...] = ()
    score_on: tuple[Path, ...] = ()
    data: Path | None = None
    budget_s: float = DEFAULT_BUDGET_S
    full: bool = False
    quick: bool = False
    seed: int = 7
    report: Callable[[str, str], None] = lambda part, detail: None
    shelf: Shelf = field(default_factory=Shelf)
    began_s: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """Seconds of the budget that are left; a bench leaves out what does not fit and says so."""
        return self.budget_s - (time.monotonic() - self.began_s)


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a bench found. `results`: method or case -> key -> number; `summary`: moectl's own."""

    bench: str
    seed: int
    results: Results
    summary: dict[str, float]
    device: str = field(default_factory=lambda: device_name())
    notes: tuple[str, ...] = ()  # for people: what was dropped, assumed, missed


def to_plain(result: BenchResult) -> dict[str, Any]:
    """The JSON shape; numbers to six significant digits."""
    return {
        "bench": result.bench,
        "commit": commit(),
        "device": result.device,
        "seed": result.seed,
        "command": command_line(),
        "results": {name: _short(row) for name, row in result.results.items()},
        "summary": _short(result.summary),
        **({"notes": list(result.notes)} if result.notes else {}),
    }


def _short(row: Mapping[str, float]) -> dict[str, float]:
    return {
        key: value if isinstance(value, int) else float(f"{value:.6g}")
        for key, value in row.items()
    }


def print_tables(result: BenchResult) -> None:
    """The summary and every row, for people, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    head = Table("key", "value", title=f"bench {result.bench}", title_justify="left")
    for key, value in result.summary.items():
        head.add_row(key, _text(value))
    console.print(head)
    keys = list(dict.fromkeys(key for row in result.results.values() for key in row))
    for wanted in _same_keys(result.results):
        shown = [key for key in keys if key in wanted]
        rows = {name: row for name, row in result.results.items() if set(row) == wanted}
        for lines in _fitted(rows, shown, console.width):
            table = Table(*lines[0])
            for line in lines[1:]:
                table.add_row(*line)
            console.print(table)
    for note in result.notes:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"{result.device}; seed {result.seed}; commit {commit()}", style="dim")


def _fitted(rows: Results, keys: Sequence[str], width: int) -> list[list[list[str]]]:
    """The lines of one table, or of several that are no wider than the terminal.

    A case a line where that fits; else a key a line, and as many cases beside each other as fit.
    """
    upright = [["case", *keys]]
    upright += [[name, *(_text(row[key]) for key in keys)] for name, row in rows.items()]
    if _width_of(upright) <= width:
        return [upright]
    turned = [list(line) for line in zip(*upright, strict=True)]
    tables, at = [], 1
    while at < len(turned[0]):
        end = at + 1
        while end < len(turned[0]) and _width_of(_columns(turned, at, end + 1)) <= width:
            end += 1
        tables.append(_columns(turned, at, end))
        at = end
    return tables


def _columns(lines: Sequence[Sequence[str]], start: int, end: int) -> list[list[str]]:
    return [[line[0], *line[start:end]] for line in lines]


def _width_of(lines: Sequence[Sequence[str]]) -> int:
    """Characters that a table of these lines takes: a space at both sides of a cell, and a rule."""
    return sum(max(map(len, column)) + 3 for column in zip(*lines, strict=True)) + 1


def _same_keys(results: Results) -> list[set[str]]:
    """Groups of rows that share one set of keys, in order."""
    groups: list[set[str]] = []
    for row in results.values():
        if set(row) not in groups:
            groups.append(set(row))
    return groups


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def data_folder(option: Path | None = None) -> Path:
    """Where the real input data lies; RefusedError (exit 3) naming the folder when it is missing.

    In order: the option, $MOECTL_DATA, `../shared/data` beside the repository of the current
    folder, and beside the source tree.
    """
    named = option or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if named is not None:
        candidates = [named]
    else:
        top = _git("rev-parse", "--show-toplevel")
        roots = [Path(top)] if top else []
        candidates = [root.parent / "shared" / "data" for root in [*roots, SOURCE_ROOT]]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise RefusedError(
        f"no data folder: {' or '.join(str(folder) for folder in candidates)} is missing",
        next_step=f"give --data DIR, or set {DATA_VARIABLE}",
    )


def require_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of a data folder; RefusedError (exit 3) naming the first that is missing."""
    for name in names:
        if not (folder / name).is_file():
            raise RefusedError(f"{folder / name}: missing", next_step="give --data DIR")
    return [folder / name for name in names]


def commit() -> str:
    """The commit of the source tree, with "+changes" when it differs; "unknown" without git."""
    head = _git("-C", str(SOURCE_ROOT), "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = _git("-C", str(SOURCE_ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if changed else head


def command_line() -> str:
    """The command as it was given."""
    return " ".join(["moectl", *sys.argv[1:]])


def device_name() -> str:
    """The processor and how many cores this process may use."""
    name = "cpu"
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}, {core_count()} cores"


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
