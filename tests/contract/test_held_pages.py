"""Pages of a driver outlive the HMM: an upgrade loses nothing, a kill -9 loses nothing.

On the ACL contract library: handles are bound to the process that exported them, as on Ascend.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moectl.core.errors import MappingError, MemoryPoolError
from moectl.core.paths import is_alive, process_id
from moectl.memory.backend import PageRun
from moectl.memory.hmm.client import HmmClient
from moectl.memory.hmm.held import HeldPages

PAGE, PAGES = 2 << 20, 16

WORKER = """
import ctypes, sys
from moectl.memory.ascend import AscendBackend
from moectl.memory.hmm.client import HmmClient
from moectl.memory.window import Window
backend, client = AscendBackend(), HmmClient(sys.argv[1], "worker")
pages = client.pages_of("d0", "m/kv")
client.adopt(backend, "d0", pages)
window = Window(client.device("d0"), len(pages) * client.device("d0").page_bytes, True, backend)
window.map(0, pages)
if sys.argv[2] == "write":
    ctypes.memmove(window.address, sys.argv[3].encode(), len(sys.argv[3]))
print(ctypes.string_at(window.address, 8).decode(errors="replace"), flush=True)
sys.stdin.readline()
print(ctypes.string_at(window.address, 8).decode(errors="replace"), flush=True)
window.close(); client.close()
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libascendcl.so, as the loader's path needs it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the ACL contract library")
    folder = tmp_path_factory.mktemp("acl")
    source = Path(__file__).with_name("acl_contract.c")
    argv = [compiler, "-O1", "-shared", "-fPIC", "-o", str(folder / "libascendcl.so"), str(source)]
    subprocess.run(argv, check=True, timeout=120)
    return folder


class Node:
    """HMMs of one node, one after another, and workers on their pages."""

    def __init__(self, folder: Path, driver: Path) -> None:
        self.socket = folder / "hmm.sock"
        self.environment = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *options: str, size: int = PAGES * PAGE) -> "subprocess.Popen[str]":
        devices = [{"id": "d0", "hbm_bytes": size, "page_bytes": PAGE, "kind": "ascend"}]
        ready, said = os.pipe()
        argv = [sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--node", "n1"]
        argv += ["--socket", str(self.socket), "--devices", json.dumps(devices)]
        process = subprocess.Popen(
            [*argv, "--ready-fd", str(said), *options],
            pass_fds=[said], env=self.environment, text=True,
        )  # fmt: skip
        os.close(said)
        self.processes.append(process)
        with open(ready, "rb") as stream:
            assert stream.read() == b"ready\n"
        return process

    def worker(self, mode: str, word: str = "") -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, str(self.socket), mode, word],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    @property
    def holder(self) -> int:
        """The process that listens at the holder's path: its lock is held by it."""
        path = f"{self.socket}.ascend"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                words = _words(entry)
                if "moectl.memory.hmm.holder" in words and path in words:
                    return int(entry.name)
        return 0

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if self.holder:
            os.kill(self.holder, signal.SIGKILL)


def _words(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_text().split("\0")
    except OSError:
        return []


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip("\0\n")


def look_again(process: "subprocess.Popen[str]") -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


@pytest.fixture
def node(tmp_path: Path, driver: Path) -> Iterator[Node]:
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    running = Node(folder, driver)
    yield running
    running.close()


def eventually(condition: Callable[[], bool], deadline_s: float = 20.0) -> bool:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_successor_has_all_pages_and_lets_new_workers_in(node: Node) -> None:
    old = node.start()
    holder = process_id(node.holder)
    client = HmmClient(node.socket, "test")
    client.reserve("d0", 3, "m/kv").commit({"kv:m:d0": {"kind": "kv"}})
    first = node.worker("write", "weights!")
    assert said(first) == "weights!"
    for _ in range(2):  # an upgrade, and one more
        new = node.start("--take-over")
        assert old.wait(10) == 0
        old = new
        assert client.pages_of("d0", "m/kv") == (0, 1, 2)  # the connection lives on
        late = node.worker("read")
        assert said(late) == "weights!"
        late.kill()
    assert look_again(first) == "weights!"
    assert process_id(node.holder) == holder
    client.check()
    client.close()
    first.wait(10)
    old.terminate()
    assert old.wait(10) == 0
    assert holder is not None and eventually(lambda: not is_alive(holder))


def test_pages_survive_an_hmm_that_is_killed(node: Node) -> None:
    first = node.start()
    client = HmmClient(node.socket, "test")
    client.reserve("d0", 3, "m/kv").commit({"kv:m:d0": {"kind": "kv"}})
    client.set_claims("d0", {"m/kv": (3, 1.0)})
    worker = node.worker("write", "survives")
    assert said(worker) == "survives"
    first.kill()
    first.wait(10)
    client.close()
    node.start()
    with HmmClient(node.socket, "again") as again:
        told = again.recovery()
        assert (told["waiting"], told["lost"], told["quarantined"]) == ([], [], 0)
        assert again.pages_of("d0", "m/kv") == (0, 1, 2)
        assert again.layouts() == ["kv:m:d0"]
        assert again.usage()[0]["claims"] == {"m/kv": [3, 1.0]}
        late = node.worker("read")
        assert said(late) == "survives"
        again.check()
    assert look_again(worker) == "survives"


def test_pages_are_listed_as_lost_when_the_holder_died_too(node: Node) -> None:
    first = node.start()
    with HmmClient(node.socket, "test") as client:
        client.reserve("d0", 3, "m/kv").commit()
        os.kill(node.holder, signal.SIGKILL)
        first.kill()
        first.wait(10)
    node.start()
    with HmmClient(node.socket, "again") as again:
        (lost,) = again.recovery()["lost"]
        assert (lost["owner"], lost["pages"]) == ("m/kv", 3)
        assert again.usage()[0]["free"] == PAGES


def test_a_lost_holder_is_an_error_of_the_request_and_not_of_the_hmm(node: Node) -> None:
    hmm = node.start()
    with HmmClient(node.socket, "test") as client:
        holder = node.holder
        os.kill(holder, signal.SIGKILL)
        assert eventually(lambda: not Path(f"/proc/{holder}").exists() or node.holder != holder)
        with pytest.raises(MemoryPoolError, match="holds the pages"):
            client.shares("d0", PageRun(0, 1), 1)
        client.check()
    assert hmm.poll() is None


def test_without_a_driver_the_holder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    if shutil.which("npu-smi"):
        pytest.skip("this machine has the driver")
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    with pytest.raises(MappingError, match="libascendcl"):
        HeldPages("ascend", folder / "hmm.sock.ascend").create("d0", PAGE, PAGE)
