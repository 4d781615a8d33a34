"""Latent attention (MLA): DeepSeek V2, V3 and V3.2, Kimi K2, GLM-5, with or without a selector.

The cache holds one latent row and one rotary key for all heads, so it is the same on every tensor
rank. `q_lora_rank` may be null (V2-Lite): then queries are projected straight.
"""

from ..model_facts import Attention, FeedForward, LayerGroup, ModelShape
from .blocks import gated_mlp, mtp_parameters, routed_mlp, whole
from .fields import Fields


def read(fields: Fields, name: str) -> ModelShape:
    """The shape of a model with latent attention."""
    d = fields.integer("hidden_size")
    layers = fields.integer("num_hidden_layers")
    dense_layers = min(layers, fields.count("first_k_dense_replace"))
    attention = latent_attention(fields)
    dense = LayerGroup(
        dense_layers, attention, gated_mlp(d, fields.integer("intermediate_size")), 2 * d
    )
    moe = LayerGroup(layers - dense_layers, attention, _experts(fields, d), 2 * d)
    mtp = mtp_parameters(fields.count("num_nextn_predict_layers"), d, moe)
    return whole(fields, name, [dense, moe], mtp=mtp)


def latent_attention(fields: Fields) -> Attention:
    """MLA of one layer, with the keys of its selector where the file has one."""
    d, h = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    rank, rope = fields.integer("kv_lora_rank"), fields.integer("qk_rope_head_dim")
    nope, v = fields.integer("qk_nope_head_dim"), fields.integer("v_head_dim")
    q_rank = fields.count("q_lora_rank")
    q = d * q_rank + q_rank + q_rank * h * (nope + rope) if q_rank else d * h * (nope + rope)
    parameters = q + d * (rank + rope) + rank + rank * h * (nope + v) + h * v * d
    top = fields.count("index_topk")
    index_heads, index_dim = fields.count("index_n_heads"), fields.count("index_head_dim")
    if top:
        parameters += q_rank * index_heads * index_dim + d * (index_dim + index_heads)
        parameters += 2 * index_dim
    return Attention(
        kind="mla",
        parameters=parameters,
        heads=h,
        kv_heads=1,
        qk_dim=nope + rope,
        v_dim=v,
        kv_elements=rank + rope,
        index_elements=index_dim if top else 0,
        index_cost=index_heads * index_dim if top else 0,
        met_tokens=top or None,
    )


def _experts(fields: Fields, d: int) -> FeedForward:
    inner = fields.integer("moe_intermediate_size")
    count = fields.integer("n_routed_experts")
    used = fields.integer("num_experts_per_tok")
    shared = fields.count("n_shared_experts") * inner
    # The score correction came with V3; V2's greedy router has weights alone.
    bias = fields.has("topk_method") is False or fields.has("routed_scaling_factor")
    return routed_mlp(d, (count, used, inner), shared, bias)
