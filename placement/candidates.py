"""Which replicas could a fleet be built of, what does each yield, and why are others not?

A candidate is a layout with a batch on one kind of device, weighed by the time model and the memory
model, under a workload and its limits. Every rejected layout keeps the first limit that it breaks
and by how much. Vectorised: all batches of all layouts are weighed in one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .constants import Constants
from .emit.rules import ENGINES as RULES
from .emit.rules import why_not
from .hardware import Hardware
from .layouts import Layout, layouts
from .memory_terms import Demand, memory_terms, sequences_that_fit
from .model_facts import ModelShape
from .quantities import Precision
from .terms import Site
from .weigh import Point, columns, lone_prefill, step_seconds, token_seconds

REPLICA_MAX = 64
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked: lengths in tokens, limits in seconds (None = no limit)."""

    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    rate: float | None = None  # requests a second; None = as many as the fleet can
    chunk: int = 8192


@dataclass(frozen=True, slots=True)
class Question:
    """A model, its precision and engine, and the workload."""

    shape: ModelShape
    precision: Precision
    engine: str
    workload: Workload


@dataclass(frozen=True, slots=True)
class Candidate:
    """One replica that is feasible. `rate` is requests a second at `batch` running requests."""

    layout: Layout
    batch: int
    role: str  # serve (prefill and decode together), prefill or decode
    rate: float
    ttft_s: float
    tpot_s: float
    memory_bytes: float

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.layout.devices

    @property
    def density(self) -> float:
        """Requests a second of one device."""
        return self.rate / self.devices


@dataclass(frozen=True, slots=True)
class Rejected:
    """A layout that cannot be used: the limit, what it needs and what there is (same unit)."""

    layout: Layout
    limit: str  # divisibility, memory, ttft or tpot
    needed: float
    available: float
    text: str

    @property
    def excess(self) -> float:
        """By which share the limit is passed."""
        return self.needed / self.available - 1 if self.available else float("inf")


def sizes(node_devices: int, devices: int) -> list[int]:
    """Devices a replica may have: the divisors of a node, then whole nodes in powers of 2."""
    found = [n for n in range(1, node_devices + 1) if node_devices % n == 0 and n <= devices]
    size = node_devices * 2
    while size <= min(devices, REPLICA_MAX):
        found.append(size)
        size *= 2
    return found


def enumerate_layouts(shape: ModelShape, node_devices: int, devices: int) -> list[Layout]:
    """Every legal layout of every size that a pool allows; a tensor group stays in its node."""
    return [
        layout
        for size in sizes(node_devices, devices)
        for layout in layouts(shape, size)
        if layout.tp <= node_devices
    ]


def weigh_all(
    question: Question, hardware: Hardware, found: Sequence[Layout], constants: Constants
) -> tuple[list[Candidate], list[Rejected]]:
    """Every feasible (layout, batch, role) and every layout that has none."""
    work, shape, precision = question.workload, question.shape, question.precision
    whole = work.input_tokens + work.output_tokens
    demand = Demand(0.0, whole, min(work.chunk, work.input_tokens))
    pairs: list[tuple[Layout, int]] = []
    rejected: list[Rejected] = []
    for layout in found:
        reason = why_not(question.engine, shape, layout) if question.engine in RULES else ""
        if reason:
            rejected.append(Rejected(layout, "engine", 2.0, 1.0, f"{layout}: {reason}"))
            continue
        room = sequences_that_fit(shape, layout, precision, demand, hardware.hbm_bytes)
        fitting = [batch for batch in BATCHES if batch <= room]
        if fitting:
            pairs += [(layout, batch) for batch in fitting]
        else:
            rejected.append(_over_memory(question, hardware, layout, demand))
    if not pairs:
        return [], rejected
    candidates, slow = _timed(question, hardware, pairs, constants)
    return candidates, rejected + slow


def _over_memory(
    question: Question, hardware: Hardware, layout: Layout, demand: Demand
) -> Rejected:
    terms = memory_terms(question.shape, layout, question.precision, replace(demand, sequences=1.0))
    text = (
        f"{layout}: {terms.total / 1e9:.1f} GB for one request on a device of"
        f" {hardware.hbm_bytes / 1e9:.0f} GB; most of it {terms.largest().replace('_', ' ')}"
    )
    return Rejected(layout, "memory", terms.total, float(hardware.hbm_bytes), text)


def _timed(
    question: Question,
    hardware: Hardware,
    pairs: Sequence[tuple[Layout, int]],
    constants: Constants,
) -> tuple[list[Candidate], list[Rejected]]:
    work = question.workload
    sites = {
        layout: Site(question.shape, hardware, layout, question.precision)
        for layout in dict.fromkeys(layout for layout, _ in pairs)
    }
    points = [
        Point(
            sites[layout],
            question.engine,
            batch,
            work.input_tokens,
            work.output_tokens,
        )
        for layout, batch in pairs
    ]
    table = columns(points)
    tpot, ttft = token_seconds(constants, table)
    step = step_seconds(constants, table)
    busy, lone = lone_prefill(constants, table)
    slots = np.array([batch * layout.dp * layout.pp for layout, batch in pairs], dtype=float)
    serve = slots / (ttft + work.output_tokens * tpot)
    decode = slots / (work.output_tokens * step)
    candidates: list[Candidate] = []
    best: dict[Layout, tuple[float, float]] = {}
    for i, (layout, batch) in enumerate(pairs):
        first, each = float(ttft[i]), float(tpot[i])
        known = best.get(layout, (float("inf"), float("inf")))
        best[layout] = (min(known[0], first), min(known[1], each))
        if _within(work, first, each):
            candidates.append(Candidate(layout, batch, "serve", float(serve[i]), first, each, 0.0))
        if _within(work, 0.0, float(step[i])):
            candidates.append(
                Candidate(layout, batch, "decode", float(decode[i]), 0.0, float(step[i]), 0.0)
            )
        if batch == 1:
            alone = float(lone[i]) + handover_seconds(question, hardware, layout)
            rate = prefill_rate(work, float(busy[i]), alone)
            if rate > 0:
                total = rate * layout.dp * layout.pp
                candidates.append(Candidate(layout, 1, "prefill", total, alone, 0.0, 0.0))
    alive = {candidate.layout for candidate in candidates if candidate.role == "serve"}
    slow = [_too_slow(work, layout, *best[layout]) for layout in best if layout not in alive]
    return candidates, slow


def handover_seconds(question: Question, hardware: Hardware, layout: Layout) -> float:
    """Sending a prompt's cache from a prefill to a decode replica, over the links between nodes."""
    elements = question.shape.kv_elements(question.workload.input_tokens)
    rails = layout.tp * layout.cp
    link = hardware.tiers[2]
    return elements * question.precision.kv_bytes / rails / link.bytes_per_s + link.latency_s


def prefill_rate(work: Workload, service_s: float, alone_s: float) -> float:
    """Prompts a second of a prefill replica whose waiting (M/D/1) leaves the TTFT limit unbroken.

    The mean wait of a queue with fixed service S and utilisation u is S u / (2 (1 - u)); solved for
    the largest u with alone + wait <= limit. No fixed rate-matching factor is used.
    """
    if work.ttft_s is None:
        return 0.95 / service_s
    slack = work.ttft_s - alone_s
    if slack <= 0:
        return 0.0
    busy = 2 * slack / (service_s + 2 * slack)
    return min(busy, 0.95) / service_s


def _within(work: Workload, ttft_s: float, tpot_s: float) -> bool:
    return (work.ttft_s is None or ttft_s <= work.ttft_s) and (
        work.tpot_s is None or tpot_s <= work.tpot_s
    )


def _too_slow(work: Workload, layout: Layout, ttft_s: float, tpot_s: float) -> Rejected:
    if work.tpot_s is not None and tpot_s > work.tpot_s:
        text = f"{layout}: {tpot_s * 1e3:.1f} ms a token at best, {work.tpot_s * 1e3:.1f} asked"
        return Rejected(layout, "tpot", tpot_s, work.tpot_s, text)
    limit = work.ttft_s or ttft_s
    text = f"{layout}: first token after {ttft_s * 1e3:.0f} ms at best, {limit * 1e3:.0f} asked"
    return Rejected(layout, "ttft", ttft_s, limit, text)
