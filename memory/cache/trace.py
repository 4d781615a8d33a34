"""What is a routing trace, and how does it lie on disk?

A trace says which experts every token used in every layer: `experts` [tokens, layers, k], with the
gate weights where they were recorded, the request and phase of every token and, where known, the
token ids. Tokens stand in the order in which they were served. Everything in this room works on
this one form; the importers make it out of other tools' files. The file is an npz without pickled
objects (`docs/traces.md`). A trace is never changed in place: selections return new ones.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import RefusedError

FORMAT = "moectl-trace"
VERSION = 1
PREFILL, DECODE, UNKNOWN_PHASE = 0, 1, 2
PHASES = {"prefill": PREFILL, "decode": DECODE, "unknown": UNKNOWN_PHASE}

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What became of the rows of the files: kept + the dropped ones == read."""

    read: int = 0
    kept: int = 0
    warmup: int = 0  # rows of the engine's own dummy batches
    incomplete: int = 0  # rows of tokens that lack a layer
    unreadable: int = 0  # truncated or malformed lines
    out_of_range: int = 0  # rows with an expert id that the model has not
    duplicate: int = 0

    def text(self) -> str:
        """One line for people."""
        dropped = {
            "warm-up": self.warmup,
            "incomplete": self.incomplete,
            "unreadable": self.unreadable,
            "out of range": self.out_of_range,
            "duplicate": self.duplicate,
        }
        total = sum(dropped.values())
        why = ", ".join(f"{count} {name}" for name, count in dropped.items() if count)
        return f"rows: {self.read} read, {self.kept} kept, {total} dropped" + (
            f" ({why})" if why else ""
        )


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """Routes of tokens in serving order. Shapes: T tokens, L recorded layers, k experts a token."""

    experts: Ints  # [T, L, k], best first where the recorder says so
    experts_per_layer: int
    layers: tuple[int, ...]  # the model's layer index of each recorded layer
    requests: Ints  # [T]
    positions: Ints  # [T] as recorded: position in the request, or in the forward pass
    phases: Bytes  # [T], PHASES
    weights: Floats | None = None  # [T, L, k] gate probabilities
    token_ids: Ints | None = None  # [T]
    model: str = ""
    source: str = ""
    counts: RowCounts = field(default_factory=RowCounts)

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return int(self.experts.shape[0])

    @property
    def objects(self) -> int:
        """How many (layer, expert) objects compete for slots."""
        return len(self.layers) * self.experts_per_layer

    @property
    def k(self) -> int:
        """Experts that a token uses in a layer."""
        return int(self.experts.shape[2])

    def object_ids(self) -> Ints:
        """[T, L, k] flat ids: layer position * experts_per_layer + expert."""
        offsets = np.arange(len(self.layers), dtype=np.int32) * self.experts_per_layer
        return (self.experts + offsets[None, :, None]).astype(np.int32)

    def gates(self) -> Floats:
        """[T, L, k] weights that add up to 1 for each token and layer; equal where unrecorded."""
        if self.weights is None:
            return np.full(self.experts.shape, 1.0 / self.k, np.float32)
        total = self.weights.sum(axis=2, keepdims=True)
        return (self.weights / np.maximum(total, 1e-9)).astype(np.float32)

    def take(self, index: npt.NDArray[Any]) -> "RoutingTrace":
        """The tokens of an index or mask, in its order."""
        return replace(
            self,
            experts=self.experts[index],
            requests=self.requests[index],
            positions=self.positions[index],
            phases=self.phases[index],
            weights=None if self.weights is None else self.weights[index],
            token_ids=None if self.token_ids is None else self.token_ids[index],
        )

    def of_request(self, request: int) -> "RoutingTrace":
        """Only one request's tokens."""
        return self.take(self.requests == request)

    def of_phase(self, phase: str) -> "RoutingTrace":
        """Only the tokens of a phase: "prefill", "decode" or "unknown"."""
        return self.take(self.phases == PHASES[phase])

    def of_layers(self, positions: Sequence[int]) -> "RoutingTrace":
        """Only some recorded layers, by their position in `layers`."""
        chosen = list(positions)
        return replace(
            self,
            experts=self.experts[:, chosen],
            layers=tuple(self.layers[i] for i in chosen),
            weights=None if self.weights is None else self.weights[:, chosen],
        )

    def request_ids(self) -> list[int]:
        """Requests in the order in which they first appear."""
        values, first = np.unique(self.requests, return_index=True)
        return [int(value) for value in values[np.argsort(first)]]


def save_trace(trace: RoutingTrace, path: Path) -> None:
    """Write a trace as one npz file."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "experts_per_layer": trace.experts_per_layer,
        "layers": list(trace.layers),
        "model": trace.model,
        "source": trace.source,
        "counts": {name: getattr(trace.counts, name) for name in RowCounts.__slots__},
    }
    arrays: dict[str, Any] = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "experts": trace.experts.astype(np.uint16),
        "requests": trace.requests,
        "positions": trace.positions,
        "phases": trace.phases,
    }
    if trace.weights is not None:
        arrays["weights"] = trace.weights
    if trace.token_ids is not None:
        arrays["token_ids"] = trace.token_ids
    with path.open("wb") as out:
        np.savez_compressed(out, **arrays)


def load_trace(path: Path) -> RoutingTrace:
    """Read a trace written by `save_trace`; RefusedError if it is another or a broken file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return _from_arrays(path, {name: file[name] for name in file.files})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RefusedError(
            f"{path}: not a readable trace: {error}",
            next_step="import the original again with `moectl trace import`",
        ) from error


def _from_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> RoutingTrace:
    head = json.loads(arrays["head"].tobytes().decode())
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        raise ValueError(f"format {head.get('format')!r} version {head.get('version')!r}")
    return RoutingTrace(
        experts=arrays["experts"].astype(np.int32),
        experts_per_layer=int(head["experts_per_layer"]),
        layers=tuple(head["layers"]),
        requests=arrays["requests"].astype(np.int32),
        positions=arrays["positions"].astype(np.int32),
        phases=arrays["phases"].astype(np.uint8),
        weights=arrays.get("weights"),
        token_ids=arrays.get("token_ids"),
        model=head["model"],
        source=head["source"],
        counts=RowCounts(**head["counts"]),
    )
