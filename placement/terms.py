"""What does one forward pass do on the busiest device, at data-sheet rates? Seconds by operator.

No constant here is fitted: bytes over bandwidth, operations over peak, messages over link rates,
and counts of launches and hops. `placement.predict` weighs these terms with what engines reach.

One pass processes `tokens` new tokens of each attention replica, every one of which meets `met`
tokens of context; decoding is one token of each of B sequences, a prefill is one sequence's chunk.

Legend: d hidden, T tokens of all attention replicas together, k experts a token uses, E experts.
"""

from dataclasses import dataclass

from .hardware import Hardware
from .layouts import Layout
from .model_facts import Attention, LayerGroup, ModelShape
from .quantities import Precision

ALL_REDUCES_A_LAYER = 2
COMBINE_BYTES = 2.0  # expert outputs travel in bf16
DISPATCH_BYTES = 1.0  # inputs in fp8 where the engine can; their scales are 3 % more
DISPATCH_SCALE = 4 / 128
# Grouped attention is a fused projection, rotary, cache write, attention and output; a latent one
# splits, normalises and expands twice; a linear one adds a convolution, gates and a recurrence.
ATTENTION_LAUNCHES = {"gqa": 6, "mla": 14, "linear": 16, "compressed": 20}
DENSE_LAUNCHES = 3
MOE_LAUNCHES = 10  # router, top-k, sort, permute, two grouped products, activation, sum
NORM_LAUNCHES = 2


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of one attention replica.

    `sequences` caches of `context` tokens each are read; `tokens` are new, each meeting `met`.
    """

    tokens: float
    sequences: float
    context: float
    met: float
    is_prefill: bool = False
    sampled: float = 0.0  # rows that need logits


@dataclass(slots=True)
class Terms:
    """Seconds at data-sheet rates on the busiest device of one stage set, and counts."""

    linear_read: float = 0.0
    linear_math: float = 0.0
    expert_read: float = 0.0
    expert_math: float = 0.0
    cache_read: float = 0.0
    attention_math: float = 0.0
    head: float = 0.0
    activations: float = 0.0
    reduce_bytes: float = 0.0
    exchange_bytes: float = 0.0
    ring_bytes: float = 0.0
    point_to_point: float = 0.0
    reduces: float = 0.0
    exchanges: float = 0.0
    rows: float = 0.0
    launches: float = 0.0
    tokens_per_expert: float = 1.0


@dataclass(frozen=True, slots=True)
class Site:
    """Everything about a replica that one pass does not change."""

    shape: ModelShape
    hardware: Hardware
    layout: Layout
    precision: Precision


def pass_terms(site: Site, work: Pass) -> Terms:
    """The terms of one pass through all layers of a replica."""
    terms = Terms()
    for group in site.shape.groups:
        _attention(terms, site, group, work)
        _feed_forward(terms, site, group, work)
        _messages(terms, site, group, work)
        terms.launches += group.count * launches_of(group)
        terms.activations += group.count * _activation_bytes(site, work) / site.hardware.bytes_per_s
    head = site.shape.embedding_parameters * site.precision.other_bytes / site.layout.tp
    math = 2 * site.shape.embedding_parameters * work.sampled / site.layout.tp
    terms.head = _larger(head / site.hardware.bytes_per_s, math / site.hardware.peak("bf16"))
    terms.rows = work.sampled
    if site.layout.pp > 1:
        link = site.hardware.tier_of(site.layout.devices)
        bytes_ = work.tokens * site.shape.hidden * COMBINE_BYTES / site.layout.tp
        terms.point_to_point = (site.layout.pp - 1) * (bytes_ / link.bytes_per_s + link.latency_s)
    return terms


def _larger(first: float, second: float) -> float:
    """The maximum, in arithmetic that holds for arrays too: a Pass may carry many batches."""
    return (first + second + abs(first - second)) / 2


def launches_of(group: LayerGroup) -> int:
    """Kernels that engines start for one layer; counted from their code, never fitted."""
    mlp = group.feed_forward
    inner = DENSE_LAUNCHES
    if mlp.experts:
        inner = MOE_LAUNCHES + (DENSE_LAUNCHES if mlp.dense_inner else 0)
    return ATTENTION_LAUNCHES[group.attention.kind] + inner + NORM_LAUNCHES


def _activation_bytes(site: Site, work: Pass) -> float:
    """Reads and writes of the residual and its norms, a few times a layer."""
    return work.tokens / site.layout.cp * site.shape.hidden * COMBINE_BYTES * 8


def _attention(terms: Terms, site: Site, group: LayerGroup, work: Pass) -> None:
    attention, n = group.attention, group.count
    tp, cp, hardware = site.layout.tp, site.layout.cp, site.hardware
    weights = attention.parameters * site.precision.linear_bytes / tp
    terms.linear_read += n * weights / hardware.bytes_per_s
    math = 2 * attention.parameters * work.tokens / cp / tp
    terms.linear_math += n * math / hardware.peak(site.precision.linear_type)
    shards = 1 if attention.is_replicated else min(tp, attention.kv_heads)
    rows = attention.met(work.context)
    cached = (attention.kv_elements * rows + attention.index_elements * work.context) / shards
    state = attention.state_elements * 4 * 2 / tp  # read and written, float32
    bytes_ = work.sequences * (cached * site.precision.kv_bytes / cp + state)
    terms.cache_read += n * bytes_ / hardware.bytes_per_s
    operations = work.tokens / cp * _score_cost(attention, work) / tp
    terms.attention_math += n * operations / hardware.peak("bf16")


def _score_cost(attention: Attention, work: Pass) -> float:
    """Operations of scores and sums for one new token, selectors included."""
    if attention.kind == "linear":
        return 6.0 * attention.heads * attention.qk_dim * attention.v_dim
    wide = attention.qk_dim + attention.v_dim
    if attention.kind == "mla" and not work.is_prefill:
        wide = 2 * attention.kv_elements  # absorbed: every head meets the latent row itself
    met = attention.met(work.met)
    return 2.0 * attention.heads * wide * met + 2.0 * attention.index_cost * work.met


def _feed_forward(terms: Terms, site: Site, group: LayerGroup, work: Pass) -> None:
    mlp, n, layout, hardware = group.feed_forward, group.count, site.layout, site.hardware
    dense = mlp.dense_parameters / layout.tp
    terms.linear_read += n * dense * site.precision.linear_bytes / hardware.bytes_per_s
    terms.linear_math += (
        n * 2 * dense * work.tokens / layout.cp / hardware.peak(site.precision.linear_type)
    )
    if not mlp.experts:
        return
    tokens = work.tokens * layout.dp
    terms.tokens_per_expert = _larger(1.0, tokens * mlp.per_token / mlp.experts)
    here = mlp.experts / layout.ep
    touched = here * (1.0 - (1.0 - mlp.per_token / mlp.experts) ** tokens)
    one = mlp.expert_parameters / layout.etp
    terms.expert_read += n * touched * one * site.precision.expert_bytes / hardware.bytes_per_s
    pairs = tokens * mlp.per_token / layout.ep
    terms.expert_math += n * 2 * pairs * one / hardware.peak(site.precision.expert_type)


def _messages(terms: Terms, site: Site, group: LayerGroup, work: Pass) -> None:
    layout, d = site.layout, site.shape.hidden
    tokens = work.tokens / layout.cp
    if layout.tp > 1:
        link = site.hardware.tier_of(layout.tp)
        share = 2 * (layout.tp - 1) / layout.tp
        bytes_ = share * tokens * d * COMBINE_BYTES * ALL_REDUCES_A_LAYER
        terms.reduce_bytes += group.count * bytes_ / link.bytes_per_s
        terms.reduces += group.count * ALL_REDUCES_A_LAYER
    mlp = group.feed_forward
    if mlp.experts and layout.dp * layout.cp > 1:
        link = site.hardware.tier_of(layout.stage_devices)
        # A row goes once to each other device that holds one of its experts.
        away = min(mlp.per_token, layout.ep) * (layout.ep - 1) / layout.ep
        both_ways = DISPATCH_BYTES * (1 + DISPATCH_SCALE) + COMBINE_BYTES
        bytes_ = tokens / layout.tp * away * d * both_ways
        terms.exchange_bytes += group.count * bytes_ / link.bytes_per_s
        terms.exchanges += 2 * group.count
    if layout.cp > 1 and group.attention.kv_elements:
        _context_messages(terms, site, group, work)


def _context_messages(terms: Terms, site: Site, group: LayerGroup, work: Pass) -> None:
    """Among context ranks a prefill passes keys round; a decode step sends its queries to all
    shards of the cache and gathers what they found."""
    layout, attention = site.layout, group.attention
    link = site.hardware.tier_of(layout.stage_devices)
    share = (layout.cp - 1) / layout.cp / link.bytes_per_s
    if work.is_prefill:
        shards = 1 if attention.is_replicated else min(layout.tp, attention.kv_heads)
        rows = attention.met(work.context * 2) * attention.kv_elements / shards
        terms.ring_bytes += group.count * rows * site.precision.kv_bytes * share
        return
    row = attention.heads * (attention.qk_dim + attention.v_dim) / layout.tp * COMBINE_BYTES
    terms.exchange_bytes += group.count * work.tokens * row * share
    terms.exchanges += 2 * group.count
