"""What fills one device's memory, term by term? Never a lump.

Bytes of the fullest device of a replica: weights by kind, cache, activations of one prefill chunk,
communication buffers and what the runtime itself takes. The last is the only one without a formula;
it is named, and counts what a CUDA context, its libraries and captured graphs are known to hold.
"""

from dataclasses import dataclass, fields, replace

from .layouts import Layout
from .model_facts import ModelShape
from .quantities import Precision

CONTEXT_BYTES = 1200 * 2**20  # a CUDA context with the libraries of products and collectives
# A worker on a cpu device is forked from a process that has loaded everything: what it holds alone
# is what it has written since, nearly all of it the heap of Python and torch. Measured: 17 MiB
# just after the fork, 18 to 21 after load and scaling, whatever the model's width.
CPU_RUNTIME_BYTES = 19 * 2**20
GRAPH_BYTES_PER_LAYER = 8 * 2**20  # captured decode graphs, all batch sizes of an engine together
USABLE = 0.95  # the rest is fragmentation and what the driver keeps
ACTIVATION_BYTES = 2  # activations are bf16 unless everything is float32


@dataclass(frozen=True, slots=True)
class MemoryTerms:
    """Bytes on the fullest device."""

    attention: float = 0.0
    dense_mlp: float = 0.0
    shared_experts: float = 0.0
    experts: float = 0.0
    routers_and_norms: float = 0.0
    embeddings: float = 0.0
    adapters: float = 0.0
    cache: float = 0.0
    state: float = 0.0
    activations: float = 0.0
    buffers: float = 0.0
    runtime: float = 0.0

    @property
    def total(self) -> float:
        """All terms."""
        return sum(getattr(self, field.name) for field in fields(self))

    def largest(self) -> str:
        """The term that binds."""
        return max((field.name for field in fields(self)), key=lambda name: getattr(self, name))


@dataclass(frozen=True, slots=True)
class Demand:
    """What a device must hold beside weights: running requests and the widest chunk."""

    sequences: float  # of one attention replica and one pipeline slot
    tokens: int  # whole length of a sequence
    chunk: int  # tokens of a prefill chunk
    query_copies: int = 1  # dual chunk attention makes five
    adapter_bytes: int = 0
    kind: str = "cuda"  # of the device: a cpu one has no context and no captured graphs


def mlp_activation_bytes(tokens: int, inner: int, chunk: int | None = None) -> int:
    """Gate and up outputs of a dense MLP in bf16, whole or for one chunk of the tokens.

    One million tokens at width 18,944 take 70.57 GiB; in chunks of 32,768 that is 96.72 % less.
    """
    return min(tokens, chunk or tokens) * 2 * inner * ACTIVATION_BYTES


def memory_terms(
    shape: ModelShape, layout: Layout, precision: Precision, demand: Demand
) -> MemoryTerms:
    """Every term of the fullest device of a replica."""
    tp, pp, ep, etp = layout.tp, layout.pp, layout.ep, layout.etp
    stage = -(-shape.layers // pp) / shape.layers  # share of the layers on the fullest stage
    parts = dict(shape.breakdown())
    linear, other = precision.linear_bytes, precision.other_bytes
    cache_shards = 1 if _is_replicated(shape) else min(tp, shape.kv_heads)
    per_sequence = shape.kv_elements(demand.tokens) * precision.kv_bytes / cache_shards / layout.cp
    wide = precision.other_bytes / ACTIVATION_BYTES  # float32 engines keep float32 rows
    # With pp stages, pp batches are under way, each stage holding its layers of all of them.
    sequences = demand.sequences * pp
    return MemoryTerms(
        attention=parts["attention"] * linear / tp * stage,
        dense_mlp=parts["dense_mlp"] * linear / tp * stage,
        shared_experts=parts["shared_experts"] * linear / tp * stage,
        experts=parts["routed_experts"] * precision.expert_bytes / ep / etp * stage,
        routers_and_norms=(parts["routers"] + parts["norms"]) * other * stage,
        embeddings=(parts["embeddings"] + (parts["head"] if pp == 1 else 0)) * other / tp,
        adapters=float(demand.adapter_bytes),
        cache=sequences * per_sequence * stage,
        state=sequences * shape.state_elements * 4 / tp * stage,
        activations=activation_bytes(shape, layout, demand) * wide,
        buffers=_buffer_bytes(shape, layout, demand) * wide,
        runtime=runtime_bytes(demand.kind, shape.layers * stage),
    )


def chunk_bytes(shape: ModelShape, layout: Layout, precision: Precision, demand: Demand) -> float:
    """The terms that a wider prefill chunk makes larger: activations and buffers."""
    rows = activation_bytes(shape, layout, demand) + _buffer_bytes(shape, layout, demand)
    return rows * precision.other_bytes / ACTIVATION_BYTES


def runtime_bytes(kind: str, layers: float) -> float:
    """What a rank's process and its libraries hold, whatever the model's width."""
    if kind == "cpu":
        return float(CPU_RUNTIME_BYTES)
    return CONTEXT_BYTES + GRAPH_BYTES_PER_LAYER * layers


def _is_replicated(shape: ModelShape) -> bool:
    return all(g.attention.is_replicated for g in shape.groups if g.attention.kv_elements)


def activation_bytes(shape: ModelShape, layout: Layout, demand: Demand) -> float:
    """The widest operator's inputs and outputs for one chunk, beside two residuals."""
    chunk = -(-demand.chunk // layout.cp)
    widest = 0.0
    for group in shape.groups:
        attention, mlp = group.attention, group.feed_forward
        heads = attention.heads * attention.qk_dim * demand.query_copies
        heads += 2 * attention.kv_heads * attention.qk_dim
        routed = mlp.per_token * (shape.hidden + 2 * mlp.expert_inner / layout.etp)
        wide = (heads / layout.tp, 2 * mlp.dense_inner / layout.tp, routed)
        widest = max(widest, *wide)
    return chunk * (widest + 2 * shape.hidden) * ACTIVATION_BYTES


def _buffer_bytes(shape: ModelShape, layout: Layout, demand: Demand) -> float:
    """Staging of collectives: an all-reduce ring's, and both sides of an expert exchange."""
    row = shape.hidden * ACTIVATION_BYTES
    chunk = min(demand.chunk, 8192)  # engines cut larger messages into pieces of this many rows
    total = 2 * chunk * row if layout.tp > 1 else 0
    if layout.dp * layout.cp > 1 and shape.is_moe:
        total += 2 * chunk * row * min(shape.experts_per_token, layout.ep)
    return float(total)


def sequences_that_fit(
    shape: ModelShape, layout: Layout, precision: Precision, demand: Demand, hbm_bytes: float
) -> float:
    """Running requests of an attention replica for which memory suffices; negative: none, and by
    how many requests' worth the weights alone are over."""
    terms = memory_terms(shape, layout, precision, _with(demand, 1.0))
    one = terms.cache + terms.state
    return (hbm_bytes * USABLE - (terms.total - one)) / max(one, 1.0)


def _with(demand: Demand, sequences: float) -> Demand:
    return replace(demand, sequences=sequences)
