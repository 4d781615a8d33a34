"""From words on the command line to a planned fleet, and from that to plain data.

The work behind `moectl plan`: it resolves names, asks the planner, and says what stands in the way
when nothing fits, with the nearest change that would (exit 4).
"""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import RefusedError, UnplaceableError, UsageError

if TYPE_CHECKING:
    from ..core.spec import DeviceSpec
    from ..placement.candidates import Candidate, Question, Refusal, Rejected
    from ..placement.constants import Constants
    from ..placement.hardware import Hardware
    from ..placement.search import Block, Fleet, Pool

GROUP = re.compile(r"(\d+)x([\w.+/-]+?)(?::(\d+))?")
WHY_MAX = 8


@dataclass(frozen=True, slots=True)
class Planned:
    """An answered question."""

    model: str
    question: "Question"
    pools: "tuple[Pool, ...]"
    fleet: "Fleet"
    seconds: float
    constants: "Constants"


def read_fleet(text: str) -> "tuple[Pool, ...]":
    """`32xh200,16xb200:8` as pools; the number after a colon is devices of a node."""
    from ..placement.search import Pool
    from . import catalogue

    pools = []
    for part in text.split(","):
        match = GROUP.fullmatch(part.strip())
        if match is None or int(match.group(1)) < 1:
            raise UsageError(
                f"--fleet {part!r}: not COUNTxDEVICE", next_step="such as 32xh200 or 8xb200:8"
            )
        hardware = catalogue.find_device(match.group(2))
        count = int(match.group(1))
        node = min(count, int(match.group(3) or hardware.node_devices))
        if count % node:
            whole, rest = divmod(count, node)
            pools.append(Pool(hardware, whole, node))
            pools.append(Pool(hardware, 1, rest))
        else:
            pools.append(Pool(hardware, count // node, node))
    return tuple(pools)


def declared_fleet(file: str) -> "tuple[Pool, ...]":
    """The Clusters of a spec as pools: nodes alike are one; raises UsageError, RefusedError."""
    from collections import Counter

    from ..core.spec import ClusterSpec
    from ..placement.search import Pool
    from . import specs

    documents = specs.read_documents(file) if file else []
    nodes: Counter[tuple[Any, int]] = Counter()
    for cluster in (d.spec for d in documents if isinstance(d.spec, ClusterSpec)):
        for node in cluster.nodes:
            where = f"{file}: node {node.name}"
            nodes.update(Counter(_hardware_of(each, where) for each in node.devices).items())
    if not nodes:
        raise UsageError("--fleet is missing", next_step="such as --fleet 8xh100")
    return tuple(Pool(hardware, count, devices) for (hardware, devices), count in nodes.items())


def _hardware_of(device: "DeviceSpec", where: str) -> "Hardware":
    """What a declared device is; raises RefusedError when it names no sheet."""
    from ..core.spec import to_plain
    from ..core.spec.catalogue import CPU_SHEET
    from . import catalogue

    if device.hardware is None and device.kind != "cpu":
        raise RefusedError(
            f"{where} has a {device.kind} device of no data sheet",
            next_step="write `hardware: {sheet: h100}` below the device, or give --fleet",
        )
    changes = to_plain(device.hardware) if device.hardware else {"sheet": CPU_SHEET}
    return replace(catalogue.with_sheet_changes(changes), hbm_bytes=device.hbm)


def ask(
    model: str, question: "Question", pools: "tuple[Pool, ...]", constants: "Constants"
) -> Planned:
    """The best fleet; raises UnplaceableError with reasons and the nearest change."""
    import time

    from ..placement.search import best_fleet

    began = time.perf_counter()
    fleet = best_fleet(question, pools, constants)
    planned = Planned(model, question, pools, fleet, time.perf_counter() - began, constants)
    wanted = question.workload.rate
    if not fleet.blocks or (wanted is not None and fleet.rate < wanted):
        raise UnplaceableError(
            _headline(planned),
            reasons=[item.text for item in why(fleet)],
            next_step=_nearest(planned, constants),
        )
    return planned


def why(fleet: "Fleet") -> "list[Rejected]":
    """For every limit, the layouts that miss it by least."""
    every = sorted((r for pool in fleet.rejected for r in pool), key=lambda r: r.excess)
    found: list[Rejected] = []
    for limit in ("memory", "tpot", "ttft", "gap", "engine"):
        found += [item for item in every if item.limit == limit][: WHY_MAX // 4]
    return found


def refused(fleet: "Fleet") -> "list[Refusal]":
    """Families of layouts of which none can serve on any pool: what binds the nearest of each."""
    from ..placement.candidates import refused_families

    everything = [r for pool in fleet.rejected for r in pool]
    return refused_families(everything, [c for pool in fleet.candidates for c in pool])


def _headline(planned: Planned) -> str:
    wanted = planned.question.workload.rate
    devices = sum(pool.devices for pool in planned.pools)
    if planned.fleet.blocks and wanted is not None:
        rate = planned.fleet.rate
        return f"{planned.model}: {devices} devices serve {rate:.2f} requests/s, {wanted:g} asked"
    return f"{planned.model}: no layout on {devices} devices keeps all limits"


def _nearest(planned: Planned, constants: "Constants") -> str:
    """The smallest change that would do: another cache type, more devices, a looser limit."""
    from ..placement.quantities import with_kv
    from ..placement.search import best_fleet

    question, work = planned.question, planned.question.workload

    def enough(fleet: "Fleet") -> bool:
        return bool(fleet.blocks) and (work.rate is None or fleet.rate >= work.rate)

    changes = []
    if question.precision.kv_bytes > 1:
        narrow = replace(question, precision=with_kv(question.precision, 1.0))
        if enough(best_fleet(narrow, planned.pools, constants)):
            changes.append("kv dtype fp8")
    have = sum(pool.devices for pool in planned.pools)
    more = _more_devices(planned, constants)
    if more:
        changes.append(f"{more - have} more devices ({more} in all)")
    loosened = (
        ("ttft", replace(work, ttft_s=None)),
        ("tpot", replace(work, tpot_s=None)),
        ("gap", replace(work, gap_s=None)),
    )
    for name, looser in loosened:
        if getattr(work, f"{name}_s") is None:
            continue
        loose = best_fleet(replace(question, workload=looser), planned.pools, constants)
        if enough(loose):
            best = min(
                (
                    getattr(b.candidate, f"{name}_s")
                    for b in loose.blocks
                    if b.candidate.role == "serve"
                ),
                default=0.0,
            )
            changes.append(f"--{name} {best * 1e3:.0f}ms" if best else f"no limit on {name}")
    if not changes:
        return "use a narrower precision, shorter lengths, or other devices"
    return "needs " + " or ".join(changes)


def _more_devices(planned: Planned, constants: "Constants") -> int:
    """The fewest devices of the first pool's kind, up to 16 times as many, that would do."""
    from ..placement.search import Pool, best_fleet

    work, first = planned.question.workload, planned.pools[0]
    node = first.hardware.node_devices
    count = sum(pool.devices for pool in planned.pools)
    limit = max(16 * count, 64)
    tried = [n for n in range(count + 1, node + 1)] if count < node else []
    tried += [n * node for n in range(1, limit // node + 1) if n * node > count]
    for devices in tried[:40]:
        pool = (
            Pool(first.hardware, 1, devices)
            if devices <= node
            else Pool(first.hardware, devices // node, node)
        )
        fleet = best_fleet(planned.question, (pool,), constants)
        if fleet.blocks and (work.rate is None or fleet.rate >= work.rate):
            return devices
    return 0


def to_plain(planned: Planned) -> dict[str, Any]:
    """Everything a program needs, JSON-safe."""
    fleet, work = planned.fleet, planned.question.workload
    return {
        "model": planned.model,
        "precision": planned.question.precision.name,
        "engine": planned.question.engine,
        "workload": {
            "input_tokens": work.input_tokens,
            "output_tokens": work.output_tokens,
            "ttft_s": work.ttft_s,
            "tpot_s": work.tpot_s,
            "rate": work.rate,
        },
        "requests_per_s": fleet.rate,
        "output_tokens_per_s": fleet.rate * work.output_tokens,
        "bound_requests_per_s": fleet.bound,
        "gap": fleet.gap,
        "devices_used": fleet.devices_used,
        "planned_in_s": planned.seconds,
        "blocks": [
            {
                "device": planned.pools[block.pool].hardware.name,
                "replicas": block.replicas,
                **candidate_plain(
                    planned, block.candidate, planned.pools[block.pool].hardware.kind
                ),
                "prompt": _prompt(planned, block),
            }
            for block in fleet.blocks
        ],
        "pareto": front(planned),
        "why_not": [item.text for item in why(fleet)],
        "refused": [
            {
                "family": item.family,
                "layouts": item.layouts,
                "limit": item.nearest.limit,
                "over": None if item.nearest.limit == "engine" else round(item.nearest.excess, 4),
                "nearest": item.nearest.text,
            }
            for item in refused(fleet)
        ],
    }


def _prompt(planned: Planned, block: "Block") -> dict[str, Any]:
    """How a replica cuts one prompt: a pipeline gets chunks of equal time, others even ones."""
    from ..placement.long_prompt import cut

    hardware = planned.pools[block.pool].hardware
    found = cut(planned.question, hardware, block.candidate, planned.constants)
    return {
        "chunks": len(found.chunks),
        "first": found.chunks[0],
        "last": found.chunks[-1],
        "bubble": round(found.bubble, 4),
        "bubble_of_even_chunks": round(found.fixed_bubble, 4),
    }


def front(planned: Planned) -> list[dict[str, Any]]:
    """The Pareto front over all pools, as plain data: speed of a user, yield of a device, price."""
    from ..placement.search import offers

    found = offers(planned.pools, planned.fleet.candidates, planned.question.workload.output_tokens)
    return [
        {
            "device": planned.pools[offer.pool].hardware.name,
            "price_per_million_tokens": offer.price,
            **candidate_plain(planned, offer.candidate, planned.pools[offer.pool].hardware.kind),
        }
        for offer in found
    ]


def candidate_plain(planned: Planned, candidate: "Candidate", kind: str = "cuda") -> dict[str, Any]:
    """One candidate as plain data, with its memory terms and the engines that can run it."""
    from dataclasses import asdict

    from ..placement.emit.rules import ENGINES, engines_for, why_not
    from ..placement.memory_terms import Demand, memory_terms

    work, shape = planned.question.workload, planned.question.shape
    demand = Demand(
        candidate.under_way / candidate.layout.pp,
        work.input_tokens + work.output_tokens,
        min(candidate.chunk, work.input_tokens),
        kind=kind,
    )
    memory = memory_terms(shape, candidate.layout, planned.question.precision, demand)
    return {
        "layout": str(candidate.layout),
        **asdict(candidate.layout),
        "devices": candidate.devices,
        "role": candidate.role,
        "batch": candidate.batch,
        "under_way": candidate.under_way,
        "chunk": candidate.chunk,
        "requests_per_s": candidate.rate,
        "tokens_per_s_device": candidate.density * work.output_tokens,
        "tokens_per_s_user": 1 / candidate.tpot_s if candidate.tpot_s else 0.0,
        "ttft_s": candidate.ttft_s,
        "tpot_s": candidate.tpot_s,
        "gap_s": candidate.gap_s,
        "memory_gb": {
            name: round(value / 1e9, 3) for name, value in asdict(memory).items() if value
        },
        "engines": list(engines_for(shape, candidate.layout)),
        "not_on": {
            engine: reason
            for engine in ENGINES
            if (reason := why_not(engine, shape, candidate.layout))
        },
    }
