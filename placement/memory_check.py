"""Is the memory model right about workers that run? Term by term, predicted beside measured.

Pure. Pages come from the HMM's table, private memory from the kernel's account of a process
(Private_Dirty: never RSS, which counts pages that all workers share). Of the process's own memory
the kernel tells one sum, so activations and runtime are compared together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .memory_terms import MemoryTerms
from .model_facts import ModelShape
from .quantities import Precision


@dataclass(frozen=True, slots=True)
class Measured:
    """What one worker really holds, in bytes; None where it cannot be seen from here."""

    device: str
    shared: int
    experts: int
    kv: int
    kv_tokens: int  # that the KV pages have room for
    region: int | None = None  # mapped for exchanges, this rank's part
    private: int | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """One term of the fullest worker."""

    term: str
    predicted: float
    measured: float | None
    source: str

    @property
    def error(self) -> float | None:
        """Share by which the prediction is above what was measured; None when nothing was."""
        if self.measured is None:
            return None
        return self.predicted / self.measured - 1 if self.measured else 0.0


def compare(
    shape: ModelShape, precision: Precision, terms: MemoryTerms, found: Sequence[Measured]
) -> list[Compared]:
    """Every term, against the worker that holds most of it."""
    shared = terms.attention + terms.dense_mlp + terms.shared_experts
    shared += terms.routers_and_norms + terms.embeddings
    widest = max(found, key=lambda each: each.kv)
    kv = float(shape.kv_elements(widest.kv_tokens)) * precision.kv_bytes
    regions = [each.region for each in found if each.region is not None]
    private = [each.private for each in found if each.private is not None]
    lines = [
        Compared("shared weights", shared, max(m.shared for m in found), "pages"),
        Compared("experts", terms.experts, max(m.experts for m in found), "pages"),
        Compared(f"KV of {widest.kv_tokens:,} tokens", kv, widest.kv, "pages"),
        Compared(
            "exchange region", terms.buffers, max(regions) if regions else None, "mapped memory"
        ),
        Compared(
            "activations and runtime",
            terms.activations + terms.runtime,
            max(private) if private else None,
            "private memory",
        ),
    ]
    known = [line for line in lines if line.measured is not None]
    total = sum(line.measured or 0.0 for line in known)
    lines.append(Compared("all of it", sum(line.predicted for line in known), total, ""))
    return lines
