"""Which replicas could a fleet be built of, what does each yield, and why are others not?

A candidate is a layout with a batch and a prefill chunk on one kind of device, weighed by the time
model and the memory model, under a workload and its limits. Every rejected layout keeps the limit
that it breaks and by how much. Vectorised: all batches and chunks of all layouts are weighed in one
call. Smaller chunks leave memory for more requests and shorten the longest gap between tokens;
larger ones read the weights and launch the kernels less often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from .constants import Constants
from .emit.rules import ENGINES as RULES
from .emit.rules import why_not
from .hardware import Hardware
from .layouts import Layout, layouts
from .memory_terms import USABLE, Demand, chunk_bytes, memory_terms
from .model_facts import ModelShape
from .quantities import Precision
from .terms import Site
from .weigh import Point, Times, all_seconds, columns

REPLICA_MAX = 64
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CHUNKS = (2048, 8192, 32_768, 131_072)
CHUNK_USUAL = 8192
CONTEXT_TOKENS = 8192  # of a prompt, at least, for each context rank


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked: lengths in tokens, limits in seconds (None = no limit)."""

    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    rate: float | None = None  # requests a second; None = as many as the fleet can
    chunk: int | None = None  # tokens of a prefill iteration; None = searched
    gap_s: float | None = None  # the longest pause between two tokens of a stream

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunks to try, ascending: up to the first that takes a whole prompt, or the usual one."""
        if self.chunk is not None:
            return (self.chunk,)
        whole = next((c for c in CHUNKS if c >= self.input_tokens), CHUNKS[-1])
        return tuple(c for c in CHUNKS if c <= max(whole, CHUNK_USUAL))

    @property
    def context_ranks(self) -> int:
        """The most ranks that may share one prompt."""
        return max(1, min(REPLICA_MAX, self.input_tokens // CONTEXT_TOKENS))


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
    memory_bytes: float  # of the fullest device
    chunk: int = CHUNK_USUAL
    gap_s: float = 0.0
    under_way: int = 1  # requests of each attention replica, all stages together

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
    limit: str  # engine, memory, ttft, tpot or gap
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


def enumerate_layouts(
    shape: ModelShape, node_devices: int, devices: int, context_ranks: int = 1
) -> list[Layout]:
    """Every legal layout of every size that a pool allows; a tensor group stays in its node, at
    most `context_ranks` share a prompt."""
    return [
        layout
        for size in sizes(node_devices, devices)
        for layout in layouts(shape, size, context_ranks=context_ranks)
        if layout.tp <= node_devices
    ]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A layout with a batch and a chunk that fit, and the bytes on its fullest device.

    Stages that follow each other hold a batch each; `is_lone`: one request is under way at a time.
    """

    layout: Layout
    batch: int
    chunk: int
    bytes: float
    is_lone: bool = False

    @property
    def under_way(self) -> int:
        """Requests of each attention replica."""
        return 1 if self.is_lone else self.batch * self.layout.pp


def weigh_all(
    question: Question, hardware: Hardware, found: Sequence[Layout], constants: Constants
) -> tuple[list[Candidate], list[Rejected]]:
    """Every feasible (layout, batch, chunk, role) and every layout that has none."""
    choices: list[_Choice] = []
    rejected: list[Rejected] = []
    for layout in found:
        reason = ""
        if question.engine in RULES:
            reason = why_not(question.engine, question.shape, layout)
        if reason:
            rejected.append(Rejected(layout, "engine", 2.0, 1.0, f"{layout}: {reason}"))
            continue
        fitting = _fitting(question, hardware, layout)
        if fitting:
            choices += fitting
        else:
            rejected.append(_over_memory(question, hardware, layout))
    if not choices:
        return [], rejected
    candidates, slow = _timed(question, hardware, choices, constants)
    return candidates, rejected + slow


def _demand(work: Workload, chunk: int, sequences: float, kind: str) -> Demand:
    whole = work.input_tokens + work.output_tokens
    return Demand(sequences, whole, min(chunk, work.input_tokens), kind=kind)


def _fitting(question: Question, hardware: Hardware, layout: Layout) -> list[_Choice]:
    """Batches and chunks for which the memory of the fullest device suffices."""
    found: list[_Choice] = []
    shape, work = question.shape, question.workload
    least = _demand(work, work.chunks[0], 1.0, hardware.kind)
    terms = memory_terms(shape, layout, question.precision, least)
    one = terms.cache + terms.state
    rest = terms.total - chunk_bytes(shape, layout, question.precision, least)
    for chunk in work.chunks:
        wanted = _demand(work, chunk, 1.0, hardware.kind)
        total = rest + chunk_bytes(shape, layout, question.precision, wanted)
        room = (hardware.hbm_bytes * USABLE - (total - one)) / max(one, 1.0)
        found += [
            _Choice(layout, batch, chunk, total + (batch - 1) * one)
            for batch in BATCHES
            if batch <= room
        ]
        alone = total - one + one / layout.pp
        if room < 1 < layout.pp and alone <= hardware.hbm_bytes * USABLE:
            found.append(_Choice(layout, 1, chunk, alone, is_lone=True))
    return found


def _over_memory(question: Question, hardware: Hardware, layout: Layout) -> Rejected:
    demand = _demand(question.workload, question.workload.chunks[0], 1.0, hardware.kind)
    terms = memory_terms(question.shape, layout, question.precision, demand)
    text = (
        f"{layout}: {terms.total / 1e9:.1f} GB for one request on a device of"
        f" {hardware.hbm_bytes / 1e9:.0f} GB; most of it {terms.largest().replace('_', ' ')}"
    )
    return Rejected(layout, "memory", terms.total, float(hardware.hbm_bytes), text)


def _timed(
    question: Question, hardware: Hardware, choices: Sequence[_Choice], constants: Constants
) -> tuple[list[Candidate], list[Rejected]]:
    """Candidates of the choices that keep all limits; layouts of which none does."""
    work = question.workload
    times = all_seconds(constants, columns(_points(question, hardware, choices)))
    tpot, ttft, gap = (values.tolist() for values in (times.tpot, times.ttft, times.gap))
    candidates: list[Candidate] = []
    best: dict[Layout, tuple[float, float, float]] = {}
    alive: set[Layout] = set()
    for i, choice in enumerate(choices):
        layout = choice.layout
        known = best.get(layout, (inf, inf, inf))
        best[layout] = min(known[0], ttft[i]), min(known[1], tpot[i]), min(known[2], gap[i])
        if _within(work, ttft[i], tpot[i], gap[i]):
            alive.add(layout)
            rate = choice.under_way * layout.dp / (ttft[i] + work.output_tokens * tpot[i])
            candidates.append(_made(choice, "serve", rate, (ttft[i], tpot[i], gap[i])))
    candidates += _decoding(work, choices, times)
    candidates += _prefilling(question, hardware, choices, times)
    slow = [_too_slow(work, layout, *best[layout]) for layout in best if layout not in alive]
    return candidates, slow


def _made(choice: _Choice, role: str, rate: float, times: tuple[float, float, float]) -> Candidate:
    layout, batch, held = choice.layout, choice.batch, choice.bytes
    first, each, gap = times
    return Candidate(
        layout, batch, role, rate, first, each, held, choice.chunk, gap, choice.under_way
    )


def _decoding(work: Workload, choices: Sequence[_Choice], times: Times) -> list[Candidate]:
    """Replicas that decode alone: they read no prompt, so the narrowest chunk is for all."""
    least, step = work.chunks[0], times.step.tolist()
    return [
        _made(
            choice,
            "decode",
            choice.under_way * choice.layout.dp / (work.output_tokens * step[i]),
            (0.0, step[i], step[i]),
        )
        for i, choice in enumerate(choices)
        if choice.chunk == least and _within(work, 0.0, step[i], step[i])
    ]


def _prefilling(
    question: Question, hardware: Hardware, choices: Sequence[_Choice], times: Times
) -> list[Candidate]:
    """Replicas that prefill alone. Prompts follow each other through the stages where memory holds
    more than one; else the stages empty in between."""
    work, found = question.workload, []
    busy, lone, through = (v.tolist() for v in (times.busy, times.alone, times.through))
    for i, choice in enumerate(choices):
        if choice.batch > 1:
            continue
        layout = choice.layout
        service = through[i] if choice.is_lone else busy[i] / layout.pp
        alone = lone[i] + handover_seconds(question, hardware, layout)
        rate = prefill_rate(work, service, alone) * layout.dp
        if rate > 0:
            found.append(_made(choice, "prefill", rate, (alone, 0.0, 0.0)))
    return found


def _points(question: Question, hardware: Hardware, choices: Sequence[_Choice]) -> list[Point]:
    work = question.workload
    lengths = work.input_tokens, work.output_tokens
    sites = {
        layout: Site(question.shape, hardware, layout, question.precision)
        for layout in dict.fromkeys(choice.layout for choice in choices)
    }
    return [Point(sites[c.layout], question.engine, c.batch, *lengths, c.chunk) for c in choices]


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


def _within(work: Workload, ttft_s: float, tpot_s: float, gap_s: float) -> bool:
    return (
        (work.ttft_s is None or ttft_s <= work.ttft_s)
        and (work.tpot_s is None or tpot_s <= work.tpot_s)
        and (work.gap_s is None or gap_s <= work.gap_s)
    )


def _too_slow(
    work: Workload, layout: Layout, ttft_s: float, tpot_s: float, gap_s: float
) -> Rejected:
    """Which limit a layout misses even at its best batch and chunk; where it could keep each limit
    alone but not all together, the one that is tightest."""
    best = {"tpot": tpot_s, "ttft": ttft_s, "gap": gap_s}
    words = {"tpot": "ms a token", "ttft": "ms to the first token", "gap": "ms between tokens"}
    limits = {"tpot": work.tpot_s, "ttft": work.ttft_s, "gap": work.gap_s}
    asked = {name: limit for name, limit in limits.items() if limit is not None}
    worst = max(asked, key=lambda name: best[name] / asked[name])
    needed, limit = best[worst], asked[worst]
    together = "" if needed > limit else "; each limit can be kept, not all at one batch and chunk"
    text = f"{layout}: {needed * 1e3:.1f} {words[worst]} at best, {limit * 1e3:.1f} asked{together}"
    return Rejected(layout, worst, needed, limit, text)


def family(layout: Layout) -> str:
    """The kinds of parallelism that a layout combines."""
    used = [name for name in ("pp", "tp", "ep", "dp", "cp") if getattr(layout, name) > 1]
    return " x ".join(used) or "one device"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A family of which no layout can serve: how many there are, and the one that comes nearest."""

    family: str
    layouts: int
    nearest: Rejected


def refused_families(
    rejected: Sequence[Rejected], candidates: Sequence[Candidate]
) -> list[Refusal]:
    """Families without a single feasible layout, the nearest to feasible first."""
    alive = {family(candidate.layout) for candidate in candidates}
    members: dict[str, list[Rejected]] = {}
    for item in rejected:
        members.setdefault(family(item.layout), []).append(item)
    found = [
        Refusal(name, len(items), min(items, key=lambda item: item.excess))
        for name, items in members.items()
        if name not in alive
    ]
    return sorted(found, key=lambda refusal: refusal.nearest.excess)
