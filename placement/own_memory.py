"""What fills a device when our own engine runs there? The terms that differ from other engines'.

Weights, experts and cache cost everybody the same. Activations, exchange buffers and the runtime
are read off our engine's code: how many rows it keeps at once, which regions it maps for the worst
batch, and what a worker's process holds for itself. `moectl describe memory` and the tests compare
them with real workers. A page-sized rest is in none of them.

Legend: T tokens of a step, d hidden, h query heads, g key/value heads, k experts a token uses.
"""

from dataclasses import dataclass, replace

from .layouts import Layout
from .memory_terms import Demand, MemoryTerms, memory_terms, runtime_bytes
from .model_facts import LayerGroup, ModelShape
from .quantities import Precision

REGION_HEADER_BYTES = 4096
REGION_PAGE_BYTES = 4096
PAIR_BYTES = 8  # row and expert of a wanted pair, int32 each
LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class OwnLimits:
    """What bounds one rank: tokens of a step, requests at once, and the kind of device."""

    batch_tokens: int = 128
    requests: int = 64
    kind: str = "cpu"
    ranks_on_node: int = 2  # a rank alone on its node maps no region


def own_terms(
    shape: ModelShape, layout: Layout, precision: Precision, demand: Demand, limits: OwnLimits
) -> MemoryTerms:
    """Every term of the fullest rank."""
    terms = memory_terms(shape, layout, precision, demand)
    return replace(
        terms,
        experts=_fullest_experts(shape, layout, precision),
        activations=own_activation_bytes(shape, layout, precision, limits),
        buffers=own_region_bytes(shape, layout, precision, limits),
        runtime=runtime_bytes(limits.kind, 0),
    )


def _fullest_experts(shape: ModelShape, layout: Layout, precision: Precision) -> float:
    """Whole experts: a width that does not divide leaves some ranks one more than others."""
    each = {
        g.feed_forward.expert_parameters for g in shape.groups if g.feed_forward.expert_parameters
    }
    count = sum(g.count * g.feed_forward.experts for g in shape.groups)
    return -(-count // layout.ep) * max(each, default=0) * precision.expert_bytes


def own_activation_bytes(
    shape: ModelShape, layout: Layout, precision: Precision, limits: OwnLimits
) -> float:
    """The most that is alive at once in a step of T tokens: in some layer, or at the logits."""
    widest = max(max(_attention_rows(shape, g), _moe_rows(shape, layout, g)) for g in shape.groups)
    logits = min(limits.requests, limits.batch_tokens) * shape.vocab * LOGIT_BYTES
    return max(limits.batch_tokens * widest * precision.other_bytes, float(logits))


def _attention_rows(shape: ModelShape, group: LayerGroup) -> float:
    """Elements a token: residual, normed, tables of angles, and queries and keys being turned."""
    attention = group.attention
    query = attention.heads * attention.qk_dim
    keys = attention.kv_heads * attention.qk_dim
    turned = max(4 * query + 2 * keys, 2 * query + 5 * keys)
    return 3 * shape.hidden + 2 * attention.qk_dim + turned


def _moe_rows(shape: ModelShape, layout: Layout, group: LayerGroup) -> float:
    """Elements a token: k results a row, what travels, and the one expert that is computed now."""
    mlp, d = group.feed_forward, shape.hidden
    rows = 2 * d + 2 * group.attention.qk_dim + 3 * mlp.dense_inner
    if not mlp.experts:
        return rows
    results = mlp.per_token * d * (3 if layout.ep > 1 else 1)  # sent, given back, brought home
    return rows + results + mlp.per_token / mlp.experts * (d + 3 * mlp.expert_inner)


def own_region_bytes(
    shape: ModelShape, layout: Layout, precision: Precision, limits: OwnLimits
) -> float:
    """One rank's region of shared memory: two halves, each holding the largest exchange whole."""
    if layout.ep == 1 or not shape.is_moe or limits.ranks_on_node == 1:
        return 0.0
    pairs = limits.batch_tokens * shape.experts_per_token
    row = shape.hidden * precision.other_bytes
    part = max(limits.batch_tokens * row + PAIR_BYTES * (pairs + 1), pairs * row)
    half = -(-layout.ep * (part + 64) // REGION_PAGE_BYTES) * REGION_PAGE_BYTES
    return REGION_HEADER_BYTES + 2 * half
