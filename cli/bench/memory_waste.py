"""How much memory do ten adapters cost beside their own bytes? Real layouts, shapes and pages.

ESFT's published layouts say which experts each adapter tunes in each of 26 layers; repeated to ten
adapters at DeepSeek-V2-Lite's shapes they stand in one packed window per layer, on pages reserved
from an HMM, one owner per adapter. F_mem is counted from the pool: pages in use times their size,
by the bytes of the experts themselves. Beside it what padding to the largest adapter would take.

The ends of every expert, where pages are shared, are written and read back in all layers; in a few
layers all bytes of all adapters are.
"""

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import MoectlError, RefusedError
from ...memory.hmm.client import HmmClient
from ...memory.packed import PackedTable
from ...memory.window import Window
from .frame import BenchOptions, Results, data_folder, require_files
from .memory_hmm import bench_hmm

PAGE_BYTES = 2 << 20
HIDDEN, EXPERT_HIDDEN, ELEMENT_BYTES = 2048, 1408, 2  # DeepSeek-V2-Lite, bfloat16
EXPERT_BYTES = 3 * HIDDEN * EXPERT_HIDDEN * ELEMENT_BYTES  # 8.25 pages
LAYERS, BASE_EXPERTS, ADAPTERS = 26, 64, 10
FILES = ("esft/intent.json", "esft/law.json", "esft/summary.json")
END_BYTES = 16 * 1024  # written at both ends of every expert
WHOLE_LAYERS = 2  # layers whose adapters are written and checked throughout
BASE = "m/experts"

Layout = list[int]  # experts tuned, per layer


def waste_bench(options: BenchOptions) -> tuple[Results, dict[str, float]]:
    """Results per method and the keys of the summary."""
    files = require_files(data_folder(options.data), FILES)
    adapters = [_layout(files[number % len(files)]) for number in range(ADAPTERS)]
    experts = sum(BASE_EXPERTS + sum(each[layer] for each in adapters) for layer in range(LAYERS))
    slots = BASE_EXPERTS + sum(max(each) for each in adapters)
    pages = -(-experts * EXPERT_BYTES // PAGE_BYTES) + LAYERS * ADAPTERS * 2
    options.report("waste: reserving ten adapters", f"{experts} experts")
    with bench_hmm({"d0": (pages * PAGE_BYTES, PAGE_BYTES)}) as hmm, hmm.client() as client:
        layers = [_fill_layer(client, layer, adapters, slots) for layer in range(LAYERS)]
        _, corrupt = zip(*layers, strict=True)
        usage = client.usage()[0]
        client.check()
    useful = experts * EXPERT_BYTES
    held = sum(usage["used"].values()) * PAGE_BYTES
    most = max(max(each) for each in adapters)
    padded = LAYERS * (BASE_EXPERTS + ADAPTERS * most)
    whole_pages = experts * -(-EXPERT_BYTES // PAGE_BYTES) * PAGE_BYTES
    packed = {
        "f_mem": held / useful,
        "pages": held // PAGE_BYTES,
        "pages_shared": usage["shared"],
        "bytes": held,
        "experts": experts,
        "adapters": ADAPTERS,
        "corruptions": sum(corrupt),
    }
    padding = {"f_mem": padded / experts, "bytes": padded * EXPERT_BYTES}
    rounding = {"f_mem": whole_pages / useful, "bytes": whole_pages}
    results: Results = {"packed": packed, "padded": padding, "whole pages": rounding}
    return results, {"f_mem": held / useful, "f_mem_padded": padded / experts}


def _layout(file: Path) -> Layout:
    """Experts tuned per MoE layer; the file counts layers from 1."""
    try:
        tuned = json.loads(file.read_text(encoding="utf-8"))["experts"]
        return [len(tuned[str(layer + 1)]) for layer in range(LAYERS)]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{file}: not an ESFT layout of {LAYERS} layers: {error!r}") from error


def _fill_layer(
    client: HmmClient, layer: int, adapters: Sequence[Layout], slots: int
) -> tuple[PackedTable, int]:
    """Reserve, map, write and read back one layer; returns its table and corrupt experts."""
    table = PackedTable(EXPERT_BYTES, PAGE_BYTES, slots)
    handle = client.device("d0")
    wanted = [(BASE, BASE_EXPERTS)]
    wanted += [(f"m/a{number}/adapters", each[layer]) for number, each in enumerate(adapters)]
    marks: dict[int, int] = {}
    is_whole = layer < WHOLE_LAYERS
    with Window(handle, table.window_bytes, writable=True) as window:
        for number, (owner, count) in enumerate(wanted):
            plan = table.plan(table.choose(count), owner)
            # An owner holds a page once, also where two of its layers meet: pages are per layer.
            reservation = client.reserve("d0", len(plan.fresh_places), owner, plan.shared_pages)
            for place, page in table.add(plan, reservation.pages):
                window.map(place * PAGE_BYTES, [page])
            reservation.commit()
            for slot in plan.slots:
                marks[slot] = (layer * 256 + number * 16 + slot) % 251 + 1
                whole = is_whole and owner != BASE
                _write(window.address + table.offset(slot), marks[slot], whole)
        table.check()
        corrupt = sum(
            not _is_intact(
                window.address + table.offset(slot),
                mark,
                layer < WHOLE_LAYERS and slot >= BASE_EXPERTS,
            )
            for slot, mark in marks.items()
        )
    if corrupt:
        raise MoectlError(f"layer {layer}: {corrupt} experts do not hold what was written")
    return table, corrupt


def _write(address: int, mark: int, whole: bool) -> None:
    if whole:
        ctypes.memset(address, mark, EXPERT_BYTES)
        return
    ctypes.memset(address, mark, END_BYTES)
    ctypes.memset(address + EXPERT_BYTES - END_BYTES, mark, END_BYTES)


def _is_intact(address: int, mark: int, whole: bool) -> bool:
    if whole:
        return ctypes.string_at(address, EXPERT_BYTES) == bytes([mark]) * EXPERT_BYTES
    ends = ctypes.string_at(address, END_BYTES) + ctypes.string_at(
        address + EXPERT_BYTES - END_BYTES, END_BYTES
    )
    return ends == bytes([mark]) * (2 * END_BYTES)
