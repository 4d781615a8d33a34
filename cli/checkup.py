"""What does `moectl doctor` look at? Small checks that say ok, warn or fail."""

import os
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ..core.errors import MoectlError
from ..core.paths import Home, is_alive, processes_of_instance, read_run_files
from ..core.units import format_bytes
from .instance import load_instance
from .ports import Ports, is_port_free

PYTHON_MIN = (3, 11)
ETCD_SAFE = (3, 5, 6)  # older 3.5 servers can lose consistency in a crash with several members
OPEN_FILES_MIN = 1024  # a gateway with 512 streams and their workers
MEMORY_MIN_BYTES = 3 * 2**30  # the local fleet with two nodes of two devices

Outcome = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    outcome: Outcome
    detail: str
    fix: str = ""


def run_checks(home: Home) -> list[Check]:
    """All checks, in the order of what builds on what."""
    checks: list[Callable[[Home], Check]] = [
        _system,
        _python,
        _torch,
        _etcd,
        _etcd_cluster,
        _memory,
        _pages,
        _open_files,
        _address,
        _ports,
        _leftovers,
    ]
    return [check(home) for check in checks]


def _system(_: Home) -> Check:
    name = f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores"
    if sys.platform != "linux":
        return Check("system", "fail", name, "moectl needs Linux (memfd, pidfd, /proc)")
    return Check("system", "ok", name)


def _python(_: Home) -> Check:
    version = platform.python_version()
    if sys.version_info[:2] < PYTHON_MIN:
        return Check("python", "fail", version, "use Python 3.11 or newer")
    return Check("python", "ok", f"{version} at {sys.executable}")


def _torch(_: Home) -> Check:
    found = {}
    for package in ("torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            return Check("torch", "fail", f"{package} is not installed", "run `make setup`")
    return Check("torch", "ok", ", ".join(f"{name} {text}" for name, text in found.items()))


def _etcd(_: Home) -> Check:
    import subprocess

    from ..core.store.embedded import find_binary

    try:
        binary = find_binary()
        answer = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (MoectlError, OSError, subprocess.SubprocessError) as error:
        return Check("etcd", "fail", f"no etcd server: {error}", "run `make setup`")
    return judge_etcd(answer.stdout, str(binary))


def judge_etcd(version_text: str, binary: str) -> Check:
    """What an etcd server's `--version` text means."""
    first = version_text.splitlines()[0] if version_text else ""
    text = first.rpartition(":")[2].strip()
    numbers = tuple(int(part) for part in text.split(".")[:3] if part.isdigit())
    if len(numbers) != 3:
        return Check("etcd", "warn", f"{binary}: version not understood: {first!r}")
    if numbers < ETCD_SAFE:
        return Check(
            "etcd",
            "warn",
            f"{text} at {binary}: fine as the one embedded member",
            "for a cluster of several members use 3.5.6 or newer: older ones can lose consistency",
        )
    return Check("etcd", "ok", f"{text} at {binary}")


def _etcd_cluster(home: Home) -> Check:
    """What the etcd that a fleet uses says of itself: the one named, or this home's own."""
    import asyncio
    import os

    named = os.environ.get("MOECTL_ETCD_ENDPOINTS", "")
    instance = None if named else load_instance(home)
    if not named and instance is None:
        return Check("etcd cluster", "ok", "none in use here (MOECTL_ETCD_ENDPOINTS names one)")
    endpoints = named.split(",") if named else [instance.etcd_endpoint] if instance else []
    try:
        return asyncio.run(_ask_etcd(endpoints))
    except MoectlError as error:
        return Check("etcd cluster", "fail", error.message, error.next_step)


async def _ask_etcd(endpoints: list[str]) -> Check:
    from ..core.store.etcd import EtcdStore
    from ..core.store.security import security_from_environment

    store = EtcdStore(endpoints, 3.0, security_from_environment())
    try:
        status = await store.status()
    finally:
        await store.close()
    what = f"{status.version}, {status.members} members, {format_bytes(status.db_bytes)}"
    warnings = status.warnings()
    if warnings:
        return Check("etcd cluster", "warn", what, "; ".join(warnings))
    return Check("etcd cluster", "ok", what)


def _memory(_: Home) -> Check:
    import psutil

    free = psutil.virtual_memory().available
    if free < MEMORY_MIN_BYTES:
        fix = f"the local fleet needs about {format_bytes(MEMORY_MIN_BYTES)}"
        return Check("memory", "warn", f"{format_bytes(free)} available", fix)
    return Check("memory", "ok", f"{format_bytes(free)} available")


def _pages(_: Home) -> Check:
    kind = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    shmem = kind.read_text(encoding="utf-8") if kind.exists() else "unknown"
    chosen = shmem.partition("[")[2].partition("]")[0] or shmem.strip()
    reserved = Path("/proc/sys/vm/nr_hugepages")
    huge = reserved.read_text(encoding="utf-8").strip() if reserved.exists() else "0"
    return Check("pages", "ok", f"4 KiB pages; hugetlb reserved {huge}; shmem huge pages {chosen}")


def _open_files(_: Home) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES_MIN:
        return Check("open files", "warn", f"{soft} of {hard}", f"ulimit -n {OPEN_FILES_MIN}")
    return Check("open files", "ok", f"{soft} of {hard}")


def _address(_: Home) -> Check:
    """Nodes on one machine need their own loopback addresses."""
    import socket

    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.11", 0))
        except OSError as error:
            fix = "give every node of the spec the address 127.0.0.1"
            return Check("loopback", "warn", f"127.0.0.11 cannot be used: {error.strerror}", fix)
    return Check("loopback", "ok", "all of 127.0.0.0/8 can be used")


def _ports(home: Home) -> Check:
    if home.read_instance() is not None:
        return Check("ports", "ok", "a fleet is up here and holds its own")
    taken = [str(port) for port in Ports().to_plain().values() if not is_port_free(port)]
    if taken:
        fix = "choose others: moectl up --api-port 0 --gateway-port 0 --etcd-port 0"
        return Check("ports", "warn", f"in use: {', '.join(taken)}", fix)
    return Check("ports", "ok", "the default ones are free")


def _leftovers(home: Home) -> Check:
    try:
        instance = load_instance(home)
    except MoectlError as error:
        return Check("leftovers", "warn", error.message, error.next_step)
    runs = read_run_files(home.run_dir) if home.run_dir.is_dir() else []
    alive = [run.role for run in runs if is_alive(run.process)]
    if instance is None:
        if alive:
            fix = "moectl down"
            return Check("leftovers", "fail", f"without an instance: {', '.join(alive)}", fix)
        return Check("leftovers", "ok", f"nothing runs in {home.root}")
    count = len(processes_of_instance(instance.instance))
    dead = [run.role for run in runs if run.role not in alive]
    if dead:
        fix = "`moectl up` starts them again, `moectl down` ends the rest"
        return Check("leftovers", "warn", f"parts that died: {', '.join(dead)}", fix)
    return Check("leftovers", "ok", f"a fleet is up: {count} processes")
