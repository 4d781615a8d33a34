"""A real HMM process per test, checkpoints written by hand, counts of descriptors and maps."""

import contextlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from moectl.core.errors import MemoryPoolError
from moectl.memory.hmm.client import HmmClient

PAGE = 16 * 1024
PAGES = 256  # of each of the two devices
READY_S = 20.0


@dataclass
class RunningHmm:
    """One HMM process and the clients that a test made."""

    process: subprocess.Popen[bytes]
    socket: Path
    clients: list[HmmClient] = field(default_factory=list)

    def client(self, name: str = "test", deadline_s: float = 10.0) -> HmmClient:
        client = HmmClient(self.socket, name, deadline_s)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.process.terminate()
        assert self.process.wait(10) == 0


def start_hmm(
    folder: Path, options: Sequence[str] = (), *, waits: bool = True, **popen: object
) -> RunningHmm:
    """Start an HMM in `folder`; wait until it says that it is ready, or only until it listens."""
    devices = [{"id": f"d{n}", "hbm_bytes": PAGES * PAGE, "page_bytes": PAGE} for n in range(2)]
    path = folder / "hmm.sock"
    ready, said = os.pipe()
    argv = [sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--socket", str(path)]
    argv += ["--node", "n1", "--devices", json.dumps(devices), "--ready-fd", str(said)]
    process = subprocess.Popen(  # type: ignore[call-overload]
        [*argv, *options], pass_fds=[said], **popen
    )
    os.close(said)
    if not waits:
        os.close(ready)
        assert eventually(lambda: _is_answering(path))
        return RunningHmm(process, path)
    with open(ready, "rb") as stream:
        assert stream.read() == b"ready\n"
    return RunningHmm(process, path)


def _is_answering(path: Path) -> bool:
    with contextlib.suppress(MemoryPoolError):
        HmmClient(path, "knock", 1.0).close()
        return True
    return False


@pytest.fixture
def private_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def hmm(private_dir: Path) -> Iterator[RunningHmm]:
    running = start_hmm(private_dir)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.close()


def run_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )


@contextlib.contextmanager
def started_child(
    code: str, *arguments: str, pass_fds: Sequence[int] = ()
) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs until the test ends it, by id."""
    argv = [sys.executable, "-P", "-c", code, *arguments]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def eventually(condition: Callable[[], bool], deadline_s: float = 10.0) -> bool:
    """Whether a condition comes true before the deadline; the other process needs a moment."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def open_fds(pid: int | str = "self") -> int:
    """Descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def shared_maps() -> int:
    """Mappings of device pages in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("memfd:moectl-" in line for line in lines)


def write_checkpoint(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file, written without the library that a reader might share bugs with."""
    words = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    header: dict[str, object] = {}
    data = bytearray()
    for name, tensor in tensors.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": words[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
