"""Does the memory model agree with the workers that run now? Behind `moectl describe memory`.

Asks the controller for pages and counters, and the kernel of this machine for what each worker's
process holds alone. Workers on other machines, and those of a fleet that a context names, are
compared by their pages only.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFoundError
from ..core.paths import Home
from ..core.units import format_bytes
from . import contexts

if TYPE_CHECKING:
    from ..placement.memory_check import Compared, Measured
    from .client import ApiClient
    from .fleet_view import FleetView, ModelView

MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)")
CHANNEL, PAGES = "moectl-channel-", "memfd:moectl-"


def check_model(client: "ApiClient", name: str) -> dict[str, Any]:
    """A model's terms, predicted and measured; raises NotFoundError when it is not placed."""
    fleet = client.fleet()
    model = fleet.model(name)
    if model is None or model.placement is None:
        raise NotFoundError(
            f"model {name!r} is not placed", next_step="`moectl get models` lists those that are"
        )
    measured = _measured(client, fleet, model)
    return {
        "model": name,
        "ranks": len(measured),
        "terms": [
            asdict(line) | {"error": line.error} for line in _compared(fleet, model, measured)
        ],
        "workers": [asdict(each) for each in measured],
    }


def table_lines(check: dict[str, Any]) -> list[str]:
    """One check as a table for people."""
    lines = [
        f"{check['model']}: the fullest of {check['ranks']} ranks",
        f"  {'term':26} {'predicted':>10} {'measured':>10} {'error':>7}  seen in",
    ]
    for term in check["terms"]:
        known = term["measured"] is not None
        measured = format_bytes(int(term["measured"])) if known else "unknown"
        error = f"{term['error']:+.1%}" if known else ""
        predicted = format_bytes(int(term["predicted"]))
        row = f"  {term['term']:26} {predicted:>10} {measured:>10} {error:>7}  {term['source']}"
        lines.append(row.rstrip())
    return lines


def _compared(
    fleet: "FleetView", model: "ModelView", measured: "Sequence[Measured]"
) -> "list[Compared]":
    from ..core.checkpoint import read_config
    from ..core.dtypes import bytes_held, checkpoint_dtype
    from ..core.spec import model_spec_from_plain
    from ..placement.layouts import Layout
    from ..placement.memory_check import compare
    from ..placement.memory_terms import Demand
    from ..placement.own_memory import OwnLimits, own_terms
    from ..placement.quantities import held_precision
    from . import catalogue

    assert model.placement is not None
    spec = model_spec_from_plain(dict(model.spec))
    _, shape = catalogue.find_shape(spec.source.path)
    nodes = [device.node for device in model.placement.ranks]
    kinds = {d.kind for n in fleet.nodes for d in n.devices if n.name in nodes}
    checkpoint = checkpoint_dtype(read_config(Path(spec.source.path)))
    precision = held_precision(
        *bytes_held(spec.engine.dtype, spec.precision, checkpoint, is_cpu="cpu" in kinds)
    )
    limits = OwnLimits(
        spec.engine.max_batch_tokens,
        spec.engine.max_requests,
        "cpu" if "cpu" in kinds else "cuda",
        max(nodes.count(node) for node in nodes),
    )
    width = model.placement.width
    demand = Demand(0.0, 1, spec.engine.prefill_chunk)
    terms = own_terms(shape, Layout(dp=width, ep=width), precision, demand, limits)
    return compare(shape, precision, terms, measured)


def _measured(client: "ApiClient", fleet: "FleetView", model: "ModelView") -> "list[Measured]":
    from ..placement.memory_check import Measured

    assert model.placement is not None
    tokens = int(model.spec["engine"]["kvBlockTokens"])
    addresses = {node.name: node.address for node in fleet.nodes}
    # The loopback addresses and process ids of a context's fleet are those of another machine.
    is_ours = contexts.chosen(Home.from_environment()) is None
    found = []
    for device in model.placement.ranks:
        told = client.get(f"nodes/{device.node}/devices/{device.device}/pages")
        worker = next((w for w in model.workers if w.device == device), None)
        stats = next((s for s in model.stats if s.rank == worker.rank), None) if worker else None
        is_here = is_ours and addresses.get(device.node, "").startswith("127.")
        own = process_parts(worker.pid) if worker is not None and is_here else None
        on_node = sum(each.node == device.node for each in model.placement.ranks)
        found.append(
            Measured(
                str(device),
                shared=_held(told, f"{model.name}/shared"),
                experts=_held(told, f"{model.name}/experts"),
                kv=_held(told, f"{model.name}/kv"),
                kv_tokens=tokens * stats.kv_blocks_total if stats else 0,
                region=_region(own, model, on_node),
                private=own["private"] if own else None,
            )
        )
    return found


def _held(told: dict[str, Any], owner: str) -> int:
    pages = sum(count for _, count, holder, _ in told["spans"] if holder == owner)
    return int(pages * told["page_bytes"])


def _region(own: "dict[str, int] | None", model: "ModelView", on_node: int) -> int | None:
    """This rank's part of the channel of the epoch in force; a rank alone on its node has none."""
    if own is None or model.placement is None or on_node < 2:
        return None
    mark = f"{CHANNEL}{model.name}:{model.placement.epoch}:"
    sizes = [size for name, size in own.items() if mark in name]
    return sizes[0] // on_node if sizes else None


def process_parts(pid: int) -> dict[str, int] | None:
    """Bytes that a process holds alone besides device pages ("private"), and of each channel."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    parts: dict[str, int] = {"private": 0}
    name = ""
    for line in text.splitlines():
        mapping = MAPPING.fullmatch(line)
        if mapping:
            name = mapping.group(1)
            continue
        key, _, value = line.partition(":")
        if key == "Size" and CHANNEL in name:
            parts[name] = parts.get(name, 0) + 1024 * int(value.split()[0])
        if key == "Private_Dirty" and PAGES not in name:
            parts["private"] += 1024 * int(value.split()[0])
    return parts
