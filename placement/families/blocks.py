"""Blocks that families share: grouped attention, gated MLPs, routed experts, and the whole model.

Each function returns counts for one layer. Biases and norms are counted, because a total that is
0.3 % off cannot be compared with a published one.

Legend: d hidden, h query heads, kv key/value heads, hd head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..model_facts import Attention, FeedForward, LayerGroup, ModelShape
from .fields import Fields


@dataclass(frozen=True, slots=True)
class HeadRules:
    """What a family adds to plain grouped attention."""

    qkv_bias: bool = False
    out_bias: bool = False
    norm: str = "none"  # of queries and keys: none, head (one head wide) or full (all heads wide)
    gate: bool = False  # queries are projected twice as wide, one half gates the output
    sinks: bool = False


def grouped(fields: Fields, rules: HeadRules, window: int | None = None) -> Attention:
    """Grouped-query attention."""
    d = fields.integer("hidden_size")
    h = fields.integer("num_attention_heads")
    kv = fields.integer("num_key_value_heads", default=h)
    hd = fields.integer("head_dim", default=d // h)
    q_wide = h * hd * (2 if rules.gate else 1)
    parameters = d * q_wide + 2 * d * kv * hd + h * hd * d
    parameters += (q_wide + 2 * kv * hd) * rules.qkv_bias + d * rules.out_bias
    parameters += {"none": 0, "head": 2 * hd, "full": (h + kv) * hd}[rules.norm]
    parameters += h * rules.sinks
    return Attention("gqa", parameters, h, kv, hd, hd, 2 * kv * hd, window)


def gated_mlp(d: int, inner: int) -> FeedForward:
    """A dense MLP of gate, up and down projections."""
    return FeedForward(3 * d * inner, inner)


def routed_mlp(
    d: int, experts: tuple[int, int, int], shared: int = 0, bias: bool = False
) -> FeedForward:
    """Routed experts: `experts` is (how many, used by a token, width); `shared` a width, or 0.

    `bias` says whether the router has one number an expert beside its weights.
    """
    count, used, inner = experts
    return FeedForward(
        dense_parameters=3 * d * shared,
        dense_inner=shared,
        experts=count,
        per_token=used,
        expert_parameters=3 * d * inner,
        expert_inner=inner,
        router_parameters=count * d + count * bias,
    )


def whole(
    fields: Fields,
    name: str,
    groups: Sequence[LayerGroup],
    *,
    final: int | None = None,
    mtp: int = 0,
) -> ModelShape:
    """The model around its layers; `final` defaults to one norm, `mtp` are extra parameters."""
    d = fields.integer("hidden_size")
    return ModelShape(
        architecture=name,
        hidden=d,
        vocab=fields.integer("vocab_size"),
        context_tokens=fields.integer("max_position_embeddings", "model_max_length"),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        groups=tuple(group for group in groups if group.count),
        final_parameters=d if final is None else final,
        mtp_parameters=mtp,
    )


def mtp_parameters(layers: int, d: int, layer: LayerGroup) -> int:
    """`layers` extra layers that predict further tokens: a whole layer, a 2d x d join, norms."""
    return layers * (layer.parameters + 2 * d * d + 3 * d)
