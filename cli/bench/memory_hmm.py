"""What do the memory benches stand on? A real HMM process, and honest counts of what is in use.

Physical bytes are blocks of memfds plus private memory of the processes, never RSS, which counts a
shared page once for each process that maps it. Descriptors and maps are read from /proc.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import MoectlError
from ...memory.hmm.client import HmmClient

READY_BYTES = b"ready\n"


@dataclass(frozen=True, slots=True)
class BenchHmm:
    """One HMM of the bench's own."""

    socket: Path
    process: "subprocess.Popen[bytes]"

    def client(self, name: str = "bench") -> HmmClient:
        """A connection; loading 4 GiB may keep one busy for a while."""
        return HmmClient(self.socket, name, 60.0)


@contextlib.contextmanager
def bench_hmm(devices: Mapping[str, tuple[int, int]]) -> Iterator[BenchHmm]:
    """An HMM with devices of (hbm bytes, page bytes), ended and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="moectl-bench-") as folder:
        os.chmod(folder, 0o700)
        path = Path(folder) / "hmm.sock"
        entries = [
            {"id": name, "hbm_bytes": hbm, "page_bytes": page}
            for name, (hbm, page) in devices.items()
        ]
        ready, said = os.pipe()
        argv = [sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--socket", str(path)]
        argv += ["--node", "bench", "--devices", json.dumps(entries), "--ready-fd", str(said)]
        process = subprocess.Popen(argv, pass_fds=[said], stderr=subprocess.DEVNULL)
        os.close(said)
        try:
            with open(ready, "rb") as stream:
                if stream.read() != READY_BYTES:
                    raise MoectlError("the bench's HMM did not start")
            yield BenchHmm(path, process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_ms(times: int) -> list[float]:
    """Milliseconds from starting an HMM process to its word that clients can connect, ascending."""
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        with bench_hmm({"d0": (1 << 30, 2 << 20), "d1": (1 << 30, 2 << 20)}):
            took.append((time.perf_counter() - begun) * 1e3)
    return sorted(took)


def touched_pages(hmm: BenchHmm) -> int:
    """Pages of the first device with memory behind them."""
    with hmm.client("touched") as client:
        return int(client.usage()[0]["touched"])


def open_fds(pid: int | str = "self") -> int:
    """Descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def page_maps(pid: int | str = "self") -> int:
    """Mappings of device pages in a process."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return sum("memfd:moectl-" in line for line in lines)


def private_bytes(pid: int | str = "self") -> int:
    """Anonymous memory of a process: what no other process shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0
