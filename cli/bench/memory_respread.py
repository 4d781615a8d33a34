"""What does it cost to re-spread 1 GiB of experts: by mapping pages, and by copying and swapping?

Two devices hold 1 GiB of experts each and exchange half of them, with room for one staging expert
per device and nothing more: an expert is copied from the peer's pages into the staging pages, its
slot is mapped to them in the shadow window, the serving window and the shadow change places (the
flip), and the pages that were left are the next staging. The baseline copies every slot into a
second buffer of the whole size and swaps buffers. Both run on touched pages.
"""

import ctypes
import statistics
import time
from dataclasses import dataclass

import torch

from ...core.errors import MoectlError
from ...memory.copy import copy_pages
from ...memory.hmm.client import HmmClient
from ...memory.host import held_bytes
from ...memory.tensors import strided_at
from ...memory.window import Window
from .frame import BenchOptions, Results
from .memory_hmm import bench_hmm, private_bytes

PAGE_BYTES = 2 << 20
EXPERT_PAGES = 3
EXPERT_BYTES = EXPERT_PAGES * PAGE_BYTES
SLOTS = 171  # of 6 MiB: 1 GiB
SAMPLE_EVERY = 20  # steps between looks at private memory, which cost milliseconds
OWNER = "m/experts"


@dataclass(slots=True)
class Rank:
    """One device's experts: what serves, what is being prepared, and which pages are below."""

    client: HmmClient
    device: str
    keys: list[int]
    pages: list[tuple[int, ...]]
    serving: tuple[Window, torch.Tensor]
    shadow: tuple[Window, torch.Tensor]

    def key_in(self, slot: int) -> int:
        """What the served tensor says is in a slot."""
        return int(self.serving[1][slot, 0].item())


def respread_bench(options: BenchOptions) -> tuple[Results, dict[str, float]]:
    """Results per method and the keys of the summary."""
    size = (SLOTS + 1) * EXPERT_BYTES
    copies = SLOTS * EXPERT_BYTES
    spare = {f"copy{n}": (copies, PAGE_BYTES) for n in range(2)}
    devices = {"d0": (size, PAGE_BYTES), "d1": (size, PAGE_BYTES), **spare}
    with bench_hmm(devices) as hmm, hmm.client() as client:
        options.report("re-spread: filling 2 x 1 GiB", "")
        ranks = [_filled(client, f"d{n}", n * SLOTS) for n in range(2)]
        options.report("re-spread: exchanging half of the slots", "")
        remap = _exchange(ranks, hmm.process.pid)
        options.report("re-spread: the same places, other pages", "")
        turn = _turn(ranks[0])
        options.report("re-spread: copy and swap", "")
        copy = _copy_and_swap(ranks)
        _check(ranks)
    # Each case's figure is its median flip: the maximum beside it is the machine's other work.
    flip_ms = max(remap["flip_median_ms"], turn["flip_ms"])
    summary = {
        "flip_ms": flip_ms,
        "remap_total_ms": remap["total_ms"],
        "copy_total_ms": copy["total_ms"],
        "peak_bytes_ratio": remap["peak_bytes_ratio"],
    }
    return {"exchange by remap": remap, "turn by remap": turn, "copy and swap": copy}, summary


def _filled(client: HmmClient, device: str, first_key: int) -> Rank:
    handle = client.device(device)
    reservation = client.reserve(device, SLOTS * EXPERT_PAGES, OWNER)
    pages = reservation.commit()
    cut = [pages[at : at + EXPERT_PAGES] for at in range(0, len(pages), EXPERT_PAGES)]
    with Window(handle, handle.bytes, writable=True) as all_pages:
        all_pages.map(0, range(handle.page_count))  # the staging pages are touched too
        ctypes.memset(all_pages.address, 0, handle.bytes)
        for slot, held in enumerate(cut):
            flat = strided_at(
                all_pages, held[0] * PAGE_BYTES, (EXPERT_BYTES // 4,), (1,), torch.int32
            )
            flat.fill_(first_key + slot)
    views = [_mapped(client, device, cut) for _ in range(2)]
    return Rank(client, device, [first_key + s for s in range(SLOTS)], cut, views[0], views[1])


def _mapped(
    client: HmmClient, device: str, pages: list[tuple[int, ...]]
) -> tuple[Window, torch.Tensor]:
    window = Window(client.device(device), SLOTS * EXPERT_BYTES, writable=False)
    window.map(0, [page for held in pages for page in held])
    window.prefault(0, window.bytes)
    shape, strides = (SLOTS, EXPERT_BYTES // 4), (EXPERT_BYTES // 4, 1)
    return window, strided_at(window, 0, shape, strides, torch.int32)


def _exchange(ranks: list[Rank], hmm_pid: int) -> dict[str, float]:
    """Exchange the second half of the slots, one pair of experts at a time."""
    private = private_bytes() + private_bytes(hmm_pid)
    flips: list[float] = []
    grown = blocks = 0
    began_s = time.perf_counter()
    looked_s = 0.0
    for step, slot in enumerate(range(SLOTS - SLOTS // 2, SLOTS)):
        flips += _exchange_slot(ranks, slot)
        looking_s = time.perf_counter()
        fds = [rank.client.device(rank.device).fd for rank in ranks]
        blocks = max([blocks, *map(held_bytes, fds)])
        if step % SAMPLE_EVERY == 0:
            grown = max(grown, private_bytes() + private_bytes(hmm_pid) - private)
        looked_s += time.perf_counter() - looking_s
    total_s = time.perf_counter() - began_s - looked_s
    layout = SLOTS * EXPERT_BYTES
    return {
        "total_ms": total_s * 1e3,
        "flip_max_ms": max(flips) * 1e3,
        "flip_median_ms": statistics.median(flips) * 1e3,
        "flips": len(flips),
        "bytes_copied": len(flips) * EXPERT_BYTES,
        "layout_bytes": layout,
        "peak_bytes": blocks + grown,
        "private_bytes": grown,
        "peak_bytes_ratio": (blocks + grown - EXPERT_BYTES) / layout,
    }


def _exchange_slot(ranks: list[Rank], slot: int) -> list[float]:
    """Both ranks get the other's expert of this slot; returns the seconds of each flip."""
    reservations = []
    for rank, peer in zip(ranks, reversed(ranks), strict=True):
        reservation = rank.client.reserve(rank.device, EXPERT_PAGES, OWNER)
        handle = rank.client.device(rank.device)
        with Window(handle, EXPERT_BYTES, writable=True) as staging:
            staging.map(0, reservation.pages)
            copy_pages(peer.client.device(peer.device), peer.pages[slot], staging, 0)
        rank.shadow[0].remap(slot * EXPERT_BYTES, reservation.pages)
        rank.shadow[0].prefault(slot * EXPERT_BYTES, EXPERT_BYTES)
        reservations.append(reservation)
    keys = [rank.keys[slot] for rank in ranks]
    flips = []
    for rank, key in zip(ranks, reversed(keys), strict=True):
        began_s = time.perf_counter()
        rank.serving, rank.shadow = rank.shadow, rank.serving
        found = rank.key_in(slot)
        flips.append(time.perf_counter() - began_s)
        if found != key:
            raise MoectlError(f"slot {slot} shows expert {found} after the flip, not {key}")
        rank.keys[slot] = key
    for rank, reservation in zip(ranks, reservations, strict=True):
        rank.shadow[0].remap(slot * EXPERT_BYTES, reservation.pages)
        rank.shadow[0].prefault(slot * EXPERT_BYTES, EXPERT_BYTES)
        reservation.commit()
        rank.client.free(rank.device, rank.pages[slot], OWNER)
        rank.pages[slot] = reservation.pages
    return flips


def _turn(rank: Rank) -> dict[str, float]:
    """Half of the slots show other pages of the same device: no byte moves."""
    half = SLOTS // 2
    wanted = [*rank.pages[half:], *rank.pages[:half]]
    began_s = time.perf_counter()
    view = _mapped(rank.client, rank.device, wanted)
    mapped_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    rank.serving, old = view, rank.serving
    rank.key_in(0)
    flip_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    total = sum(int(view[1][slot, 0].item()) for slot in range(SLOTS))
    pass_s = time.perf_counter() - began_s
    if total != sum(rank.keys):
        raise MoectlError("a slot shows another expert after the turn")
    rank.pages, rank.keys = wanted, [*rank.keys[half:], *rank.keys[:half]]
    old[0].close()
    return {
        "total_ms": (mapped_s + flip_s) * 1e3,
        "flip_ms": flip_s * 1e3,
        "first_pass_ms": pass_s * 1e3,
        "bytes_copied": 0,
    }


def _copy_and_swap(ranks: list[Rank]) -> dict[str, float]:
    """Copy all slots of both ranks into second buffers, twice: untouched and touched ones."""
    figures: dict[str, float] = {}
    client = ranks[0].client
    for kind in ("cold", "warm"):
        began_s = time.perf_counter()
        for number, rank in enumerate(ranks):
            handle = client.device(f"copy{number}")
            with Window(handle, handle.bytes, writable=True) as target:
                target.map(0, range(handle.page_count))
                for slot, held in enumerate(rank.pages):
                    source = client.device(rank.device)
                    copy_pages(source, held, target, slot * EXPERT_BYTES)
        figures[f"{kind}_ms"] = (time.perf_counter() - began_s) * 1e3
    return {
        "total_ms": figures["warm_ms"],
        "cold_total_ms": figures["cold_ms"],
        "bytes_copied": 2 * SLOTS * EXPERT_BYTES,
        "peak_bytes_ratio": 2.0,
    }


def _check(ranks: list[Rank]) -> None:
    for rank in ranks:
        rank.client.check()
        for slot, key in enumerate(rank.keys):
            served = rank.serving[1][slot]
            if int(served.min()) != key or int(served.max()) != key:
                raise MoectlError(f"{rank.device}, slot {slot}: not expert {key} throughout")
