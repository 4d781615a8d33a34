"""Linear attention in three of four layers: Qwen3-Next and Qwen3.5.

A linear layer keeps a state of fixed size for each sequence and no cache; a full layer gates its
output, so its query projection is twice as wide.
"""

from ..model_facts import Attention, FeedForward, LayerGroup, ModelShape
from .blocks import HeadRules, grouped, routed_mlp, whole
from .fields import Fields


def read(fields: Fields, name: str) -> ModelShape:
    """The shape of a hybrid model."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    kinds = fields.items("layer_types")
    if kinds is None:
        full = layers // fields.integer("full_attention_interval", default=4)
    else:
        full = sum(kind == "full_attention" for kind in kinds)
    mlp = _experts(fields, d)
    groups = [
        LayerGroup(full, grouped(fields, HeadRules(norm="head", gate=True)), mlp, 2 * d),
        LayerGroup(layers - full, _linear(fields), mlp, 2 * d),
    ]
    return whole(fields, name, groups)


def _linear(fields: Fields) -> Attention:
    d = fields.integer("hidden_size")
    k_heads, v_heads = (
        fields.integer("linear_num_key_heads"),
        fields.integer("linear_num_value_heads"),
    )
    k_dim, v_dim = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
    keys, values = k_heads * k_dim, v_heads * v_dim
    mixed = 2 * keys + values
    parameters = d * (mixed + values) + 2 * d * v_heads + values * d
    parameters += mixed * fields.integer("linear_conv_kernel_dim") + 2 * v_heads + v_dim
    return Attention(
        "linear",
        parameters,
        v_heads,
        v_heads,
        k_dim,
        v_dim,
        0,
        state_elements=v_heads * k_dim * v_dim,
    )


def _experts(fields: Fields, d: int) -> FeedForward:
    experts = (
        fields.integer("num_experts"),
        fields.integer("num_experts_per_tok"),
        fields.integer("moe_intermediate_size"),
    )
    mlp = routed_mlp(d, experts, fields.count("shared_expert_intermediate_size"))
    gate = d if mlp.dense_inner else 0  # the shared expert is weighed by a gate of its own
    return FeedForward(
        mlp.dense_parameters + gate,
        mlp.dense_inner,
        mlp.experts,
        mlp.per_token,
        mlp.expert_parameters,
        mlp.expert_inner,
        mlp.router_parameters,
    )
