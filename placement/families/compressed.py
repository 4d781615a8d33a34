"""Compressed attention: DeepSeek V4. One cached row stands for 4 or 128 tokens, beside a window.

Every layer keeps the last `sliding_window` tokens whole; by its ratio a layer adds compressed rows,
and at ratio 4 a selector that chooses among them. Residuals are several streams that are mixed.
"""

from ..model_facts import Attention, LayerGroup, ModelShape
from .blocks import routed_mlp, whole
from .fields import Fields


def read(fields: Fields, name: str) -> ModelShape:
    """The shape of a model with compressed attention."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    ratios = (fields.items("compress_ratios") or [])[:layers]
    if len(ratios) != layers:
        fields.integer("compress_ratios")  # refused as missing: the ratios size every layer
    inner = fields.integer("moe_intermediate_size")
    experts = (fields.integer("n_routed_experts"), fields.integer("num_experts_per_tok"), inner)
    mlp = routed_mlp(d, experts, fields.count("n_shared_experts") * inner)
    streams = fields.integer("hc_mult", default=1)
    mixers = 2 * (streams * d + 1) * (2 + streams) * streams + 6
    groups = [
        LayerGroup(ratios.count(ratio), _attention(fields, ratio), mlp, 2 * d + mixers)
        for ratio in sorted(set(ratios))
    ]
    final = d + streams * streams * d + streams + 1
    return whole(fields, name, groups, final=final)


def _attention(fields: Fields, ratio: int) -> Attention:
    d, h, hd = (fields.integer(n) for n in ("hidden_size", "num_attention_heads", "head_dim"))
    q_rank, o_rank = fields.integer("q_lora_rank"), fields.integer("o_lora_rank")
    groups = fields.integer("o_groups")
    parameters = d * q_rank + q_rank + q_rank * h * hd + d * hd + hd
    parameters += h * hd * o_rank + groups * o_rank * d + h
    index_heads, index_dim = fields.integer("index_n_heads"), fields.integer("index_head_dim")
    has_index = ratio == 4
    if ratio:
        wide = 2 * hd if has_index else hd
        parameters += 2 * d * wide + ratio * wide + hd
    if has_index:
        parameters += 4 * d * index_dim + ratio * 2 * index_dim + index_dim
        parameters += q_rank * index_heads * index_dim + d * index_heads
    return Attention(
        kind="compressed",
        parameters=parameters,
        heads=h,
        kv_heads=1,
        qk_dim=hd,
        v_dim=hd,
        kv_elements=hd,
        window=None if ratio else fields.integer("sliding_window"),
        kv_stride=ratio or 1,
        index_elements=index_dim if has_index else 0,
        index_cost=index_heads * index_dim if has_index else 0,
        met_tokens=fields.integer("index_topk") if has_index else None,
    )
