"""Does anything leak or break when workers come, go and are killed, again and again?

A cycle attaches, checks every expert's bytes, changes the spread, retires the old one and detaches.
A kill case is a worker that cycles without end and gets SIGKILL at a random instant; then a new one
adopts what is there. After each, every page is in exactly one state, pages in use are exactly those
that a layout names, and no descriptor or mapping is left.

    python -m moectl.cli.bench.memory_cycles SOCKET HMM_PID CYCLES KILLS SEED SECONDS

runs in a process of its own without torch and without threads, so that workers can be forks of it.
"""

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

from ...core.errors import MoectlError
from ...memory.hmm.client import HmmClient
from ...memory.layout import ExpertKey, ExpertLayout, ExpertShape, experts_name, respread
from ...memory.window import Window
from .frame import BenchOptions, Results
from .memory_hmm import bench_hmm, open_fds, page_maps, start_ms

PAGE_BYTES = 16 * 1024
PAGES = 512
SHAPE = ExpertShape(64, 48, "float32")  # 36 KiB: three pages, the last one with padding
KEYS: list[ExpertKey] = [(layer, expert) for layer in range(4) for expert in range(16)]
OWNER, PREFIX = "m/experts", "experts:m:d0:"
KILL_AFTER_S = 0.05  # the longest life of a worker that will be killed; a cycle takes about 10 ms
STARTS = 9  # of an HMM, to tell how long one takes
SETTLE_S = 10.0  # for the HMM to notice that a client is gone


def cycles_bench(options: BenchOptions) -> tuple[Results, dict[str, float]]:
    """Results per case and the keys of the summary."""
    count = 1000 if options.full else 100
    limit_s = max(30.0, options.left_s() * 0.8)
    options.report("cycles and kills", f"{count} of each")
    with bench_hmm({"d0": (PAGES * PAGE_BYTES, PAGE_BYTES)}) as hmm:
        argv = [sys.executable, "-P", "-m", "moectl.cli.bench.memory_cycles", str(hmm.socket)]
        argv += [str(hmm.process.pid), str(count), str(count), str(options.seed), str(limit_s)]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=limit_s + 60, check=False
        )
    if done.returncode != 0:
        raise MoectlError(f"the cycles failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    starts = start_ms(STARTS)
    figures |= {"hmm_start_ms": starts[len(starts) // 2], "hmm_start_max_ms": starts[-1]}
    keys = (
        "hmm_start_ms",
        "cycles",
        "kills",
        "leaked_pages",
        "leaked_fds",
        "leaked_maps",
        "corruptions",
    )
    return {"cycles and kills": figures}, {key: figures[key] for key in keys}


def content_of(key: ExpertKey) -> bytes:
    """What an expert's bytes must be, whoever wrote them."""
    return random.Random(key[0] * 1000 + key[1]).randbytes(SHAPE.bytes)


class Rank:
    """One worker's life on d0."""

    def __init__(self, client: HmmClient) -> None:
        self._client = client
        self._handle = client.device("d0")
        self._sums = {key: zlib.crc32(content_of(key)) for key in KEYS}

    def adopt(self) -> tuple[int, ExpertLayout | None]:
        """The newest epoch that is committed; what only older ones hold is retired."""
        epochs = sorted(int(name[len(PREFIX) :]) for name in self._client.layouts(PREFIX))
        for old in epochs[:-1]:
            self._retire(old, self._layout(epochs[-1]))
        return (epochs[-1], self._layout(epochs[-1])) if epochs else (0, None)

    def cycle(self, rng: random.Random) -> int:
        """Attach, check, change the spread, detach; returns experts whose bytes were wrong."""
        epoch, layout = self.adopt()
        wrong = self._corrupt(layout) if layout is not None else 0
        wanted = rng.sample(KEYS, rng.randint(8, len(KEYS)))
        new = self._spread(layout, wanted, epoch + 1)
        if layout is not None:
            self._retire(epoch, new)
        return wrong + self._corrupt(new)

    def _layout(self, epoch: int) -> ExpertLayout:
        plain = self._client.get_layout(experts_name("m", "d0", epoch))
        return ExpertLayout.from_json(plain or {})

    def _spread(
        self, old: ExpertLayout | None, wanted: list[ExpertKey], epoch: int
    ) -> ExpertLayout:
        change = respread(old, wanted)
        size = ExpertLayout(SHAPE, PAGE_BYTES).pages_per_slot
        name = experts_name("m", "d0", epoch)
        if not change.missing:
            layout = ExpertLayout.build(SHAPE, PAGE_BYTES, change.kept)
            self._client.put_layout(name, layout.to_json())
            return layout
        with self._client.reserve("d0", size * len(change.missing), OWNER) as reservation:
            cut = range(0, len(reservation.pages), size)
            fresh = [reservation.pages[at : at + size] for at in cut]
            added = dict(zip(change.missing, fresh, strict=True))
            with Window(self._handle, len(reservation.pages) * PAGE_BYTES, True) as window:
                window.map(0, reservation.pages)
                for at, key in enumerate(change.missing):
                    place = window.address + at * size * PAGE_BYTES
                    ctypes.memmove(place, content_of(key), SHAPE.bytes)
            layout = ExpertLayout.build(SHAPE, PAGE_BYTES, {**change.kept, **added})
            reservation.commit({name: layout.to_json()})
        return layout

    def _retire(self, epoch: int, new: ExpertLayout) -> None:
        kept = set(new.pages)
        gone = [page for page in self._layout(epoch).pages if page not in kept]
        self._client.free("d0", gone, OWNER, drop_layouts=[experts_name("m", "d0", epoch)])

    def _corrupt(self, layout: ExpertLayout) -> int:
        with Window(self._handle, max(layout.bytes, PAGE_BYTES), writable=False) as window:
            window.map(0, layout.pages)
            return sum(
                zlib.crc32(ctypes.string_at(window.address + slot * layout.slot_bytes, SHAPE.bytes))
                != self._sums[key]
                for key, slot in layout.slots.items()
            )


def run(socket: str, hmm_pid: int, counts: tuple[int, int], seed: int, limit_s: float) -> None:
    """Cycle and kill; one JSON line on stdout."""
    rng = random.Random(seed)
    cycles = kills = wrong = leaked = 0
    end_s = time.monotonic() + limit_s
    witness = HmmClient(socket, "witness", 10.0)
    wrong += _one_life(socket, rng)  # warm: lazily opened things are open
    fds, maps, hmm_fds = open_fds(), page_maps(), open_fds(hmm_pid)
    while cycles < counts[0] and time.monotonic() < end_s:
        wrong += _one_life(socket, rng)
        cycles += 1
        leaked = max(leaked, _stray_pages(witness))
    while kills < counts[1] and time.monotonic() < end_s:
        _killed_life(socket, rng)
        kills += 1
        leaked = max(leaked, _stray_pages(witness))
        wrong += _one_life(socket, rng)
        leaked = max(leaked, _stray_pages(witness))
    figures = {
        "cycles": cycles,
        "kills": kills,
        "leaked_pages": leaked,
        "leaked_fds": max(0, open_fds() - fds) + _left(lambda: open_fds(hmm_pid) - hmm_fds),
        "leaked_maps": max(0, page_maps() - maps) + page_maps(hmm_pid),
        "corruptions": wrong,
    }
    print(json.dumps(figures))


def _one_life(socket: str, rng: random.Random) -> int:
    with HmmClient(socket, "worker", 10.0) as client:
        return Rank(client).cycle(rng)


def _killed_life(socket: str, rng: random.Random) -> None:
    seed, life_s = rng.random(), rng.random() * KILL_AFTER_S
    pid = os.fork()
    if pid == 0:
        try:
            own = random.Random(seed)
            while True:
                _one_life(socket, own)
        finally:
            os._exit(1)
    time.sleep(life_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise MoectlError("the worker that was to be killed ended by itself")


def _stray_pages(client: HmmClient) -> int:
    """Pages in use that no layout names, and reserved ones that nobody can hold any more."""
    reserved = _left(lambda: int(client.usage()[0]["reserved"]))
    client.check()
    named = {
        page
        for name in client.layouts(PREFIX)
        for page in ExpertLayout.from_json(client.get_layout(name) or {}).pages
    }
    return reserved + len(set(client.pages_of("d0", OWNER)) ^ named)


def _left(count: Callable[[], int]) -> int:
    """A count that must fall to zero once the HMM has noticed who is gone."""
    end_s = time.monotonic() + SETTLE_S
    while (left := count()) > 0 and time.monotonic() < end_s:
        time.sleep(0.002)
    return max(0, left)


if __name__ == "__main__":
    path, pid, cycle_count, kill_count, seed_text, seconds = sys.argv[1:]
    run(path, int(pid), (int(cycle_count), int(kill_count)), int(seed_text), float(seconds))
