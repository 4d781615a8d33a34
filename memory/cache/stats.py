"""What is in a trace, and is it sound?

`check_trace` names every reason to distrust a trace that has been read; `trace_stats` says what it
holds in numbers. Pure.
"""

from dataclasses import dataclass

import numpy as np

from .rows import warmup_rows
from .trace import PHASES, RoutingTrace


@dataclass(frozen=True, slots=True)
class TraceStats:
    """Numbers of a trace; shares are fractions."""

    tokens: int
    layers: int
    experts_per_layer: int
    k: int
    requests: int
    phases: dict[str, int]
    weights: bool
    token_ids: bool
    objects_used: int  # (layer, expert) objects that appear at all
    repeat_share: float  # experts that the token before used in the same layer too
    top_share: float  # uses that fall on the most used k experts of each layer


def trace_stats(trace: RoutingTrace) -> TraceStats:
    """What a trace holds."""
    counts = np.bincount(trace.object_ids().ravel(), minlength=trace.objects)
    by_layer = np.sort(counts.reshape(len(trace.layers), -1), axis=1)[:, ::-1]
    again = (trace.experts[1:, :, :, None] == trace.experts[:-1, :, None, :]).any(axis=3)
    return TraceStats(
        tokens=trace.tokens,
        layers=len(trace.layers),
        experts_per_layer=trace.experts_per_layer,
        k=trace.k,
        requests=len(trace.request_ids()),
        phases={name: int((trace.phases == code).sum()) for name, code in PHASES.items()},
        weights=trace.weights is not None,
        token_ids=trace.token_ids is not None,
        objects_used=int((counts > 0).sum()),
        repeat_share=float(again.mean()) if len(again) else 0.0,
        top_share=float(by_layer[:, : trace.k].sum() / max(counts.sum(), 1)),
    )


def check_trace(trace: RoutingTrace) -> list[str]:
    """Everything wrong or suspect, in words; empty when sound."""
    found: list[str] = []
    if not trace.tokens:
        return ["no tokens"]
    found += _check_shapes(trace)
    if found:
        return found
    outside = (trace.experts < 0) | (trace.experts >= trace.experts_per_layer)
    if outside.any():
        token, layer, _ = (int(i) for i in np.argwhere(outside)[0])
        found.append(f"token {token}, layer {trace.layers[layer]}: expert id out of range")
    repeats = (np.diff(np.sort(trace.experts, axis=2), axis=2) == 0).any(axis=2)
    if repeats.any():
        token, layer = (int(i) for i in np.argwhere(repeats)[0])
        found.append(f"token {token}, layer {trace.layers[layer]}: one expert twice")
    if trace.weights is not None and not np.isfinite(trace.weights).all():
        found.append("weights that are no numbers")
    dummy = warmup_rows(trace.experts[:, 0].astype(np.int64))
    if dummy:
        found.append(f"the first {dummy} tokens are alike: warm-up rows of the engine")
    absent = [
        layer for layer in range(trace.layers[0], trace.layers[-1]) if layer not in trace.layers
    ]
    if absent:
        shown = ", ".join(map(str, absent[:6])) + (", ..." if len(absent) > 6 else "")
        found.append(f"note: layers {shown} are not recorded; a shared pool is a part of the model")
    return found


def _check_shapes(trace: RoutingTrace) -> list[str]:
    tokens, layers, k = trace.experts.shape
    found = []
    if layers != len(trace.layers):
        found.append(f"{layers} layers of routes, {len(trace.layers)} layer numbers")
    if k > trace.experts_per_layer:
        found.append(f"{k} of {trace.experts_per_layer} experts")
    for name in ("requests", "positions", "phases", "token_ids"):
        column = getattr(trace, name)
        if column is not None and column.shape != (tokens,):
            found.append(f"{name} has shape {list(column.shape)}, not [{tokens}]")
    if trace.weights is not None and trace.weights.shape != trace.experts.shape:
        found.append("weights and experts differ in shape")
    if list(trace.layers) != sorted(set(trace.layers)):
        found.append("layers do not grow")
    return found
