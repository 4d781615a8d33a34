"""What is a model in numbers? From its card or config.json, and from its tensors when here.

The work behind `moectl model facts`. Counts from tensors are exact and win over those of a config;
a family that only one of the two readers knows is told by that one alone.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError


def numbers(path: str) -> dict[str, Any]:
    """Everything that is known, as plain data; raises CheckpointError when neither reader can."""
    folder = Path(path).expanduser()
    has_weights = folder.is_dir() and any(folder.glob("*.safetensors*"))
    counted = _counted(folder) if has_weights else {}
    try:
        planned = _planned(path)
    except CheckpointError:
        if not counted:
            raise
        planned = {}
    return {**planned, **counted}


def number_lines(plain: dict[str, Any]) -> list[str]:
    """The same for people: one fact a line, parts indented below their whole."""
    lines: list[str] = []
    for key, value in plain.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            lines.append(name)
            lines += [f"  {part.replace('_', ' '):22} {_shown(n):>20}" for part, n in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(name)
            lines += [f"  {_group(entry)}" for entry in value]
        else:
            lines.append(f"{name:24} {_shown(value):>20}")
    return lines


def _group(entry: dict[str, Any]) -> str:
    """One group of layers in a sentence."""
    window = f", window {entry['window']:,}" if entry.get("window") else ""
    experts = f", {entry['experts']} experts" if entry.get("experts") else ", dense"
    return (
        f"{entry['layers']} x {entry['attention']} attention{window}{experts}:"
        f" {entry['parameters']:,} parameters a layer, {entry['active_parameters']:,} active,"
        f" {entry['kv_elements_per_token']:,} KV elements a token"
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{value:,}"


def _planned(path: str) -> dict[str, Any]:
    """From a config: totals, what a token uses, and a breakdown by kind of weight."""
    from . import catalogue

    name, shape = catalogue.find_shape(path)
    return {
        "name": name,
        "architecture": shape.architecture,
        "layers": shape.layers,
        "total_parameters": shape.total_parameters,
        "active_parameters": shape.active_parameters,
        "mtp_parameters": shape.mtp_parameters,
        "parameters": dict(shape.breakdown()),
        "moe_layer_count": shape.moe_layers,
        "experts": shape.experts,
        "experts_per_token": shape.experts_per_token,
        "kv_elements_per_token": shape.kv_elements_per_token,
        "kv_elements_at_context": shape.kv_elements(shape.context_tokens),
        "state_elements": shape.state_elements,
        "context_tokens": shape.context_tokens,
        "layer_groups": [
            {
                "layers": group.count,
                "attention": group.attention.kind,
                "window": group.attention.window,
                "experts": group.feed_forward.experts,
                "parameters": group.parameters,
                "active_parameters": group.active_parameters,
                "kv_elements_per_token": group.attention.kv_elements,
            }
            for group in shape.groups
        ],
    }


def _counted(folder: Path) -> dict[str, Any]:
    """From the headers of the weights, for families that our engine executes."""
    from ..core.facts import read_model_facts

    model = read_model_facts(folder)
    plain: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(model).items()
        if key != "config"
    }
    for name, count in (
        ("expert_bytes", model.expert_bytes),
        ("shared_bytes", model.shared_bytes),
        ("kv_bytes_per_token", model.kv_bytes_per_token),
    ):
        plain[name] = {"bfloat16": count(2), "float32": count(4)}
    return plain
