"""How long does a prompt of a million tokens take, on pipeline x tensor x context ranks?

Long prompts leave the short ones' regime: products are large, launches do not count, attention is
most of the work, so data-sheet peaks times a few round efficiencies are enough. They are numbers
that kernels are known to reach, rounded with the published points of `placement.anchors` in view,
fitted to none of them.
"""

from dataclasses import dataclass

from .chunks import ChunkCost, equal_time_chunks, pipeline_seconds
from .hardware import Hardware
from .layouts import Layout
from .model_facts import ModelShape
from .quantities import Precision

PRODUCT_SHARE = 0.58  # of peak, large dense products
ATTENTION_SHARE = 0.60  # of peak, flash attention over long keys
LINK_SHARE = 0.62  # of link bandwidth, large collectives
BLOCK = 64


@dataclass(frozen=True, slots=True)
class LongPlan:
    """A prompt's prefill: its chunks, seconds to the first token, idle share of the pipeline."""

    chunks: tuple[int, ...]
    ttft_s: float
    products_s: float
    attention_s: float
    messages_s: float
    bubble: float


def chunk_cost(
    shape: ModelShape, hardware: Hardware, layout: Layout, precision: Precision
) -> ChunkCost:
    """Seconds of one stage for its share of the layers, per token and per pair of tokens."""
    ranks = layout.tp * layout.cp * layout.dp * layout.pp
    products = 0.0
    for group in shape.groups:
        linear = group.attention.parameters + group.feed_forward.dense_parameters
        experts = group.feed_forward.per_token * group.feed_forward.expert_parameters
        products += group.count * 2 * linear / hardware.peak(precision.linear_type)
        products += group.count * 2 * experts / hardware.peak(precision.expert_type)
    pairs = 0.0
    for group in shape.groups:
        a = group.attention
        if a.window is None and a.met_tokens is None and a.kind != "linear":
            wide = a.qk_dim + a.v_dim
            pairs += group.count * 2 * a.heads * wide / a.kv_stride / hardware.peak("bf16")
    linear_s = products / ranks / PRODUCT_SHARE
    return ChunkCost(
        linear_s + message_seconds(shape, hardware, layout) / layout.pp,
        pairs / ranks / ATTENTION_SHARE,
    )


def message_seconds(shape: ModelShape, hardware: Hardware, layout: Layout) -> float:
    """Seconds of tensor-parallel all-reduces for one token, over the layers of all stages.

    Across nodes a collective is hierarchical: every rank reduces its share of the row inside the
    node, and only that share crosses.
    """
    if layout.tp < 2:
        return 0.0
    row = shape.hidden * 2 / layout.cp
    inside = min(layout.tp, hardware.node_devices)
    node = hardware.tier_of(inside)
    seconds = 2 * (inside - 1) / inside * row / (node.bytes_per_s * LINK_SHARE)
    groups = layout.tp // inside
    if groups > 1:
        rail = hardware.tier_of(layout.tp)
        seconds += 2 * (groups - 1) / groups * row / inside / (rail.bytes_per_s * LINK_SHARE)
    return 2 * shape.layers * seconds


def ring_seconds(
    shape: ModelShape, hardware: Hardware, layout: Layout, precision: Precision, tokens: int
) -> float:
    """Passing keys and values once around the context ranks, all layers."""
    if layout.cp < 2:
        return 0.0
    link = hardware.tier_of(layout.stage_devices)
    shards = 1 if shape.groups[0].attention.is_replicated else min(layout.tp, shape.kv_heads)
    cache = tokens * shape.kv_elements_per_token * precision.kv_bytes / shards
    return cache * (layout.cp - 1) / layout.cp / (link.bytes_per_s * LINK_SHARE)


def long_prefill(
    shape: ModelShape,
    hardware: Hardware,
    layout: Layout,
    precision: Precision,
    tokens: int,
    chunk: int,
) -> LongPlan:
    """The prefill of one prompt in dynamic chunks of about `chunk` tokens."""
    cost = chunk_cost(shape, hardware, layout, precision)
    count = max(1, -(-tokens // chunk))
    chunks = (
        equal_time_chunks(cost, tokens, count, BLOCK) if layout.pp > 1 else _even(tokens, chunk)
    )
    total = pipeline_seconds(cost, chunks, layout.pp)
    attention = cost.quadratic * tokens**2 / 2 * layout.pp
    messages = message_seconds(shape, hardware, layout) * tokens
    ring = ring_seconds(shape, hardware, layout, precision, tokens)
    exposed = max(0.0, ring - attention)  # a ring hides behind the attention that it feeds
    work = sum_seconds(cost, chunks)
    return LongPlan(
        chunks,
        total + exposed,
        cost.linear * tokens * layout.pp - messages,
        attention,
        messages + exposed,
        1 - work / total,
    )


def sum_seconds(cost: ChunkCost, chunks: tuple[int, ...]) -> float:
    """One stage's busy time over all chunks."""
    prefix, seconds = 0, 0.0
    for size in chunks:
        seconds += cost.seconds(prefix, size)
        prefix += size
    return seconds


def _even(tokens: int, chunk: int) -> tuple[int, ...]:
    full, rest = divmod(tokens, chunk)
    return (chunk,) * full + ((rest,) if rest else ())
