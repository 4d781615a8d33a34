"""How long until a device is free whose requests have thousands of tokens to go?

Long requests run on every rank of a wide model; it is scaled down, and the clock runs from the
accepted intent to the last page that the leaving devices gave back. Nothing waits for a request to
end: requests of leaving ranks move with their KV, so the bound is 2 s and the time that their KV
takes over the link between two nodes, whose speed is measured here by sending blocks the same way.
Readers go on all the time; one that fails or is never told another token is counted.
"""

import random
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch

from ...agents.engine.kv import KvPool
from ...agents.engine.move_wire import MoveSocket
from ...core.errors import MoectlError
from ...core.facts import read_model_facts
from ...core.plan import Pace
from .. import sse
from ..demo.traffic import Target
from ..fleet_view import TransitionView
from .scale_fleet import NODE_ADDRESSES, BenchFleet

READERS_PER_DEVICE = 1
PROMPT_TOKENS, CONTEXT_TOKENS = 1024, 4096
SETTLED_TOKENS = 8  # everybody decodes before the scale, and again after it
READY_DEADLINE_S = 180.0
ALLOWANCE_S = 2.0
LINK_BYTES, LINK_REPEATS, LINK_BLOCKS = 64 << 20, 3, 64


@dataclass
class _Reader:
    """One long request, read until told to stop."""

    target: Target
    prompt: list[int]
    arrivals: list[float] = field(default_factory=list)
    error: str = ""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="long reader", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave; the gateway cancels what runs."""
        self._stop.set()
        self._thread.join(READY_DEADLINE_S)

    def _run(self) -> None:
        body: dict[str, Any] = {
            "model": self.target.model,
            "prompt": self.prompt,
            "max_tokens": CONTEXT_TOKENS - len(self.prompt),
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
        }
        head = {"Authorization": f"Bearer {self.target.token}"}
        url = f"{self.target.gateway_url}/v1/completions"
        try:
            with (
                httpx.Client(timeout=READY_DEADLINE_S, trust_env=False) as client,
                client.stream("POST", url, json=body, headers=head) as answer,
            ):
                if answer.status_code >= 400:
                    answer.read()
                    self.error = f"{answer.status_code}: {answer.text[:200]}"
                    return
                for event in sse.events(answer.iter_lines()):
                    if self._stop.is_set():
                        return
                    if '"error"' in event.data[:20]:
                        self.error = event.data[:200]
                        return
                    self.arrivals.append(time.time())
        except httpx.HTTPError as error:
            self.error = str(error) or type(error).__name__


def run_free(fleet: BenchFleet, wide: int, narrow: int, seed: int, pace: Pace) -> dict[str, float]:
    """Scale from `wide` to `narrow` under long requests; the row of the bench."""
    placed = fleet.model().placement
    if placed is None or placed.width != wide:
        fleet.scale(wide)
    vocab = read_model_facts(fleet.shape.folder).vocab
    draw = random.Random(seed)
    readers = [
        _Reader(fleet.target(), [draw.randrange(1, vocab) for _ in range(PROMPT_TOKENS)])
        for _ in range(READERS_PER_DEVICE * wide)
    ]
    try:
        _until_all_read(readers, time.time())
        transition = fleet.scale(narrow, pace)
        _until_all_read(readers, time.time())
    finally:
        for reader in readers:
            reader.stop()
    return free_row(transition, link_bytes_per_s()) | {
        "requests": len(readers),
        "failed": sum(bool(reader.error) for reader in readers),
        "longest_gap_ms": max(_gap_ms(reader, transition) for reader in readers),
    }


def free_row(transition: TransitionView, link: float) -> dict[str, float]:
    """The transition's part of the row. `link` is in bytes per second."""
    actual = transition.actual
    kv_bytes = float(actual.get("kv_moved_bytes", 0.0))
    done = transition.phase_at.get("done")
    if done is None:
        raise MoectlError(f"the scale that frees a device ended in {transition.phase}")
    return {
        "free_device_s": done - transition.accepted_at,
        "free_device_bound_s": ALLOWANCE_S + kv_bytes / link,
        "kv_moved_bytes": int(kv_bytes),
        "link_bytes_per_s": link,
        "requests_moved": int(actual.get("requests_moved", 0)),
        "requests_replayed": int(actual.get("requests_replayed", 0)),
        "move_tail_ms": float(actual.get("move_tail_ms", 0.0)),
    }


def link_bytes_per_s(size: int = LINK_BYTES) -> float:
    """How fast blocks go from one node's address to another's; the best of a few tries."""
    shape = (LINK_BLOCKS, size // LINK_BLOCKS, 1, 1, 1, 1)
    outgoing = KvPool(torch.ones(shape, dtype=torch.uint8))
    incoming = KvPool(torch.zeros(shape, dtype=torch.uint8))
    blocks = range(LINK_BLOCKS)
    with socket.create_server((NODE_ADDRESSES[1], 0)) as listener:
        address = f"{NODE_ADDRESSES[1]}:{listener.getsockname()[1]}"
        sender = MoveSocket.connect(address, NODE_ADDRESSES[0])
        receiver = MoveSocket(listener.accept()[0])
    best = float("inf")
    try:
        for _ in range(LINK_REPEATS):
            began = time.monotonic()
            thread = threading.Thread(target=sender.send_blocks, args=(outgoing, blocks))
            thread.start()
            receiver.receive_blocks(incoming, blocks)
            best = min(best, time.monotonic() - began)
            thread.join()
    finally:
        sender.close()
        receiver.close()
    return size / best


def _until_all_read(readers: list[_Reader], since: float) -> None:
    """Wait until every reader that still reads was told some tokens since then."""
    end = time.monotonic() + READY_DEADLINE_S
    while True:
        told = [
            bool(each.error) or sum(at > since for at in each.arrivals) >= SETTLED_TOKENS
            for each in readers
        ]
        if all(told):
            return
        if time.monotonic() > end:
            raise MoectlError(f"{told.count(False)} long requests gave no token in time")
        time.sleep(0.05)


def _gap_ms(reader: _Reader, transition: TransitionView) -> float:
    """The longest pause of a reader that touches the transition."""
    start = transition.accepted_at
    end = transition.phase_at.get("done", start)
    pairs = zip(reader.arrivals, reader.arrivals[1:], strict=False)
    return max(((b - a) * 1e3 for a, b in pairs if b > start and a < end), default=0.0)
