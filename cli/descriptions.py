"""What is shown of one thing? Lines of text from a fleet snapshot. Pure.

A model is shown in its five layers, because "it was accepted" and "users are served by it" are
different claims, and whoever waits wants to know how far it has come.
"""

from datetime import datetime
from typing import Any

from ..core.errors import UsageError
from ..core.plan import Pace
from ..core.units import format_bytes
from .fleet_view import FleetView, ModelView, NodeView, TransitionView
from .listings import format_age

LAYERS = (
    ("desired", "declared in the spec, or chosen for auto"),
    ("admitted", "can be carried out"),
    ("allocated", "has devices"),
    ("joined", "workers in the group"),
    ("effective", "ranks that serve the committed epoch"),
)
EVENTS_SHOWN = 8


def describe_lines(fleet: FleetView, kind: str, name: str) -> list[str]:
    """Everything about one model, node, worker or transition; raises UsageError."""
    if kind == "model":
        model = fleet.model(name)
        return model_lines(model, fleet) if model else _unknown(kind, name)
    if kind == "node":
        node = next((node for node in fleet.nodes if node.name == name), None)
        return node_lines(node, fleet) if node else _unknown(kind, name)
    if kind == "transition":
        found = fleet.transition(name)
        return transition_lines(found, fleet) if found else _unknown(kind, name)
    return worker_lines(fleet, name)


def _unknown(kind: str, name: str) -> list[str]:
    raise UsageError(
        f"no {kind} named {name!r}", next_step=f"`moectl get {kind}s -o name` lists them"
    )


def model_lines(model: ModelView, fleet: FleetView) -> list[str]:
    """A model: layers, conditions, placement, running change, events."""
    status = model.status
    observed = status.observed_generation if status else "unknown"
    lines = [
        f"model {model.name}: generation {model.generation}, observed {observed}",
        "",
        "WIDTH",
    ]
    for layer, meaning in LAYERS:
        value = getattr(status, f"{layer}_width") if status else "unknown"
        lines.append(f"  {layer:10} {value!s:>8}  {meaning}")
    lines += ["", "CONDITIONS"] if status else ["", "CONDITIONS unknown"]
    for c in status.conditions if status else ():
        age = format_age(max(0.0, fleet.at - c.changed_at))
        lines.append(f"  {c.type:12} {c.status:8} {c.reason:20} {age:>4}  {c.message}")
    lines += [
        "",
        f"PLACEMENT epoch {model.placement.epoch}" if model.placement else "PLACEMENT none",
    ]
    if model.placement:
        for rank, device in enumerate(model.placement.ranks):
            worker = next((w for w in model.workers if w.device == device), None)
            state = f"{worker.state}, pid {worker.pid}" if worker else "no worker"
            copies = sum(1 for _ in model.placement.experts_on(rank))
            lines.append(f"  rank {rank}: {device!s:10} {copies} expert copies, {state}")
    if model.active:
        lines += ["", "CHANGE", *(f"  {line}" for line in transition_lines(model.active, fleet))]
    return lines + _events(fleet, f"model/{model.name}")


def transition_lines(transition: TransitionView, fleet: FleetView) -> list[str]:
    """A transition: phases, predicted against actual."""
    lines = [
        f"{transition.kind} {transition.operation_id} of model {transition.model}: "
        f"{transition.from_width} -> {transition.to_width}, {transition.phase}"
    ]
    if transition.reason:
        lines.append(f"reason: {transition.reason}")
    if transition.attempt > 1:
        lines.append(f"attempt: {transition.attempt}")
    if transition.pace != Pace.GENTLE:
        lines.append(f"pace: {transition.pace}")
    before = transition.accepted_at
    for phase, at in sorted(transition.phase_at.items(), key=lambda item: item[1]):
        lines.append(f"  {phase:10} +{at - transition.accepted_at:7.3f} s  (+{at - before:.3f})")
        before = at
    for key, value in sorted(transition.prediction.items()):
        actual = transition.actual.get(key)
        known = f", actual {_figure(key, actual)}" if actual is not None else ""
        lines.append(f"  {key}: predicted {_figure(key, value)}{known}")
    rest = sorted(set(transition.actual) - set(transition.prediction))
    lines += [f"  {key}: actual {_figure(key, transition.actual[key])}" for key in rest]
    return lines


def node_lines(node: NodeView, fleet: FleetView) -> list[str]:
    """A node: devices, who works there, events."""
    age = format_age(max(0.0, fleet.at - node.started_at))
    lines = [f"node {node.name}: {node.address}, agent {node.agent_pid} for {age}", "", "DEVICES"]
    for device in node.devices:
        usage = device.usage
        free = f"{usage.free} of {usage.total} pages free" if usage else "usage unknown"
        lines.append(f"  {device.name}: {device.kind}, {format_bytes(device.hbm_bytes)}, {free}")
        for owner, pages in sorted((usage.used if usage else {}).items()):
            lines.append(f"    {owner}: {format_bytes(pages * device.page_bytes)}")
    lines += ["", "WORKERS"]
    for model in fleet.models:
        for worker in model.workers:
            if worker.device.node == node.name:
                lines.append(
                    f"  {model.name} rank {worker.rank} on {worker.device}: {worker.state}"
                )
    return lines + _events(fleet, f"node/{node.name}")


def worker_lines(fleet: FleetView, name: str) -> list[str]:
    """A worker, by MODEL/NODE/DEVICE."""
    model_name, _, device = name.partition("/")
    model = fleet.model(model_name)
    worker = next((w for w in (model.workers if model else ()) if str(w.device) == device), None)
    if model is None or worker is None:
        return _unknown("worker", name)
    lines = [
        f"worker {name}: rank {worker.rank}, instance {worker.instance}, pid {worker.pid}",
        f"state: {worker.state}, epoch {worker.epoch}, serves at {worker.address}",
    ]
    if worker.message:
        lines.append(f"message: {worker.message}")
    for stats in (s for s in model.stats if s.device in (device, worker.device.device)):
        lines += [
            f"requests: {stats.running} running, {stats.waiting} waiting",
            f"tokens: {stats.tokens_out} out, {stats.tokens_in} in, {stats.steps} steps",
            f"step: {stats.step_ms_p50:.1f} ms median, {stats.step_ms_p99:.1f} ms p99",
            f"KV: {stats.kv_blocks_used} of {stats.kv_blocks_total} blocks",
        ]
    return lines + _events(fleet, f"worker/{name}")


def _events(fleet: FleetView, subject: str) -> list[str]:
    own = [event for event in fleet.events if event.subject == subject][-EVENTS_SHOWN:]
    lines = ["", "EVENTS"] if own else []
    for event in own:
        age = format_age(max(0.0, fleet.at - event.at))
        lines.append(f"  {age:>4}  {event.severity:7} {event.reason}: {event.message}")
    return lines


def _figure(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_figure(key, v)}" for k, v in sorted(value.items()))
    if not isinstance(value, (int, float)):
        return str(value)
    if "bytes" in key:
        return format_bytes(int(value))
    if key.endswith("_at"):
        return datetime.fromtimestamp(value).strftime("%H:%M:%S.%f")[:-3]
    if key.endswith("_ms"):
        return f"{value:.1f} ms"
    return f"{value:.3f} s" if key.endswith("_s") else f"{value:g}"
