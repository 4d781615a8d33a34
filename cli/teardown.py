"""How does an embedded fleet end, whatever state it is in? Every process by its id, then its files.

Works from the run files, then from a scan for the instance's mark in process environments, so that
nothing survives a lost or half-written file. Only what moectl made is removed.
"""

import concurrent.futures
import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.paths import (
    Home,
    ProcessId,
    RunFile,
    end_process,
    is_alive,
    processes_of_instance,
    read_run_files,
    remove_run_file,
)
from . import parts

LEFTOVER_GRACE_S = 2.0
Report = Callable[[str, str], None]  # role, outcome


@dataclass(frozen=True, slots=True)
class TeardownResult:
    """What was found and ended; `survivors` must be empty."""

    ended: tuple[str, ...]
    leftovers: int  # processes that no run file knew, or that outlived their parent
    survivors: tuple[int, ...]
    was_running: bool


def tear_down(home: Home, *, keep_logs: bool, report: Report) -> TeardownResult:
    """End every process of the home's fleet and remove its state; harmless when there is none."""
    instance = home.read_instance()
    mark = str(instance["instance"]) if instance and "instance" in instance else ""
    runs = sorted(read_run_files(home.run_dir), key=lambda run: parts.stop_rank(run.role))
    ended = [run.role for run in runs if is_alive(run.process)]
    _end_in_order(home, runs, report)
    left = _leftovers(home, mark)
    _end_together(left, LEFTOVER_GRACE_S)
    survivors = tuple(process.pid for process in left if is_alive(process))
    if not survivors:
        remove_state(home, keep_logs=keep_logs)
    return TeardownResult(tuple(ended), len(left), survivors, instance is not None)


def _end_in_order(home: Home, runs: list[RunFile], report: Report) -> None:
    """One step of the order at a time; agents of one fleet end together."""
    for rank in sorted({parts.stop_rank(run.role) for run in runs}):
        group = [run for run in runs if parts.stop_rank(run.role) == rank]
        for run in group:
            report(run.role, "run")
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            gone = list(pool.map(lambda r: end_process(r.process, parts.grace_s(r.role)), group))
        for run, is_gone in zip(group, gone, strict=True):
            report(run.role, "ok" if is_gone else "fail")
            if is_gone:
                remove_run_file(home.run_dir, run.role)


def _leftovers(home: Home, mark: str) -> list[ProcessId]:
    found = [
        run.process
        for node in _node_dirs(home)
        for run in read_run_files(node / "run")
        if is_alive(run.process)
    ]
    marked = processes_of_instance(mark) if mark else []
    return sorted({*found, *marked}, key=lambda process: process.pid)


def _end_together(processes: list[ProcessId], grace_s: float) -> None:
    if not processes:
        return
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(lambda process: end_process(process, grace_s), processes))


def remove_state(home: Home, *, keep_logs: bool) -> None:
    """Remove what moectl wrote into the home, and the home itself when nothing else is in it."""
    for file in (home.instance_file, home.token_file, home.internal_key_file):
        file.unlink(missing_ok=True)
    for folder in (home.run_dir, home.etcd_dir):
        shutil.rmtree(folder, ignore_errors=True)
    if keep_logs:
        _strip_nodes(home)
        return
    for folder in (home.logs_dir, home.nodes_dir):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # somebody else's file is in it: it stays
        home.root.rmdir()


def _strip_nodes(home: Home) -> None:
    """Everything of the nodes but their logs; what lies beside their folders is shared by them."""
    for shared in home.nodes_dir.glob("*"):
        if not shared.is_dir():
            shared.unlink(missing_ok=True)
    for node in _node_dirs(home):
        for entry in node.iterdir():
            if entry.name == "logs":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _node_dirs(home: Home) -> list[Path]:
    return sorted(path for path in home.nodes_dir.glob("*") if path.is_dir())
