"""What accelerator is a device, for plans? The sheet that its Cluster names, with its changes.

Pure, over shipped data. A device that names no sheet is known only when its kind says enough (a
cpu); anything else is refused with what to write, never guessed from its memory.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..core.errors import SpecError
from ..core.plan import DeviceId, Infeasible
from ..core.records import DeviceRecord
from ..core.spec.catalogue import CPU_SHEET, sheet, with_changes
from ..placement.hardware import Hardware, parse_hardware
from .observe import Snapshot


def hardware_of(
    ranks: Sequence[DeviceId], devices: Mapping[DeviceId, DeviceRecord], snapshot: Snapshot
) -> Hardware | Infeasible:
    """The slowest of these devices, in nodes as large as theirs: a step waits for it."""
    declared = _declared(snapshot)
    found: list[Hardware] = []
    for device in ranks:
        record = devices[device]
        changes = declared.get(device)
        if changes is None and record.kind != "cpu":
            return Infeasible(
                (f"device {device}: its Cluster names no data sheet",),
                "`hardware: {sheet: h100}` below the device, or `experts: N` in the model",
            )
        try:
            one = _parsed(json.dumps(changes or {"sheet": CPU_SHEET}, sort_keys=True))
        except SpecError as error:
            return Infeasible((f"device {device}: {error.message}",))
        found.append(dataclasses.replace(one, hbm_bytes=record.hbm_bytes))
    slowest = min(found, key=lambda each: (each.bytes_per_s, each.name))
    return in_nodes_of(slowest, _fewest_in_a_node(ranks, devices))


def in_nodes_of(hardware: Hardware, node_devices: int) -> Hardware:
    """The same device in nodes of another size."""
    tiers = tuple(
        dataclasses.replace(tier, devices=node_devices) if tier.name == "node" else tier
        for tier in hardware.tiers
    )
    return dataclasses.replace(hardware, tiers=tiers)


def _fewest_in_a_node(ranks: Sequence[DeviceId], devices: Mapping[DeviceId, DeviceRecord]) -> int:
    nodes = {device.node for device in ranks}
    counts = {node: sum(d.node == node for d in devices) for node in nodes}
    return max(1, min(counts.values(), default=1))


def _declared(snapshot: Snapshot) -> dict[DeviceId, dict[str, Any]]:
    """The `hardware` of every device whose Cluster spec has one, as plain data."""
    found: dict[DeviceId, dict[str, Any]] = {}
    for (kind, _), seen in sorted(snapshot.specs.items()):
        for node in seen.value.spec.get("nodes", ()) if kind == "Cluster" else ():
            for device in node.get("devices", ()):
                if device.get("hardware"):
                    found[DeviceId(node["name"], device["id"])] = device["hardware"]
    return found


@lru_cache(maxsize=64)
def _parsed(text: str) -> Hardware:
    changes = json.loads(text)
    name = str(changes.pop("sheet"))
    return parse_hardware(with_changes(sheet(name), changes), f"hardware of sheet {name}")
