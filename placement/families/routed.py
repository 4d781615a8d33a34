"""Grouped attention with routed experts: Qwen2 and 3, OLMoE, GLM, Mixtral, gpt-oss, MiniMax, ...

The traps are here: `intermediate_size` is the expert width for Mixtral, gpt-oss, MiniMax and (with
`intermediate_size_mlp` as the dense one) Llama 4; the head width is not d / h for Qwen3-235B; half
of gpt-oss's layers and three of four of Llama 4's see a window.
"""

from dataclasses import replace

from ..model_facts import FeedForward, LayerGroup, ModelShape
from .blocks import HeadRules, gated_mlp, grouped, mtp_parameters, routed_mlp, whole
from .fields import Fields


def read_qwen(fields: Fields, name: str) -> ModelShape:
    """Qwen3-MoE: experts in every `decoder_sparse_step`-th layer but the listed dense ones."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    step = fields.integer("decoder_sparse_step", default=1)
    dense = set(fields.items("mlp_only_layers") or ())
    sparse = sum(1 for n in range(layers) if n not in dense and (n + 1) % step == 0)
    bias = fields.flag("attention_bias")
    attention = grouped(fields, HeadRules(norm="head", qkv_bias=bias, out_bias=bias))
    experts = (
        fields.integer("num_experts", "num_local_experts"),
        fields.integer("num_experts_per_tok"),
        fields.integer("moe_intermediate_size"),
    )
    groups = [LayerGroup(sparse, attention, routed_mlp(d, experts), 2 * d)]
    if sparse < layers:
        mlp = gated_mlp(d, fields.integer("intermediate_size"))
        groups.append(LayerGroup(layers - sparse, attention, mlp, 2 * d))
    return whole(fields, name, groups)


def read_qwen2_moe(fields: Fields, name: str) -> ModelShape:
    """Qwen2-MoE: biased projections, and a shared expert behind a gate of its own."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    step = fields.integer("decoder_sparse_step", default=1)
    dense = set(fields.items("mlp_only_layers") or ())
    sparse = sum(1 for n in range(layers) if n not in dense and (n + 1) % step == 0)
    attention = grouped(fields, HeadRules(qkv_bias=fields.flag("qkv_bias", default=True)))
    experts = (
        fields.integer("num_experts", "num_local_experts"),
        fields.integer("num_experts_per_tok"),
        fields.integer("moe_intermediate_size"),
    )
    mlp = routed_mlp(d, experts, fields.integer("shared_expert_intermediate_size"))
    mlp = replace(mlp, dense_parameters=mlp.dense_parameters + d)
    inner = gated_mlp(d, fields.integer("intermediate_size")) if sparse < layers else mlp
    groups = [
        LayerGroup(sparse, attention, mlp, 2 * d),
        LayerGroup(layers - sparse, attention, inner, 2 * d),
    ]
    return whole(fields, name, groups)


def read_olmoe(fields: Fields, name: str) -> ModelShape:
    """OLMoE: norms over all heads at once; `intermediate_size` is the experts' width."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    bias = fields.flag("attention_bias")
    attention = grouped(fields, HeadRules(norm="full", qkv_bias=bias, out_bias=bias))
    experts = (
        fields.integer("num_experts", "num_local_experts"),
        fields.integer("num_experts_per_tok"),
        fields.integer("intermediate_size"),
    )
    return whole(fields, name, [LayerGroup(layers, attention, routed_mlp(d, experts), 2 * d)])


def read_glm(fields: Fields, name: str) -> ModelShape:
    """GLM-4.5 to 4.7: the first layers dense, one shared expert, biased projections."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    first = min(layers, fields.count("first_k_dense_replace"))
    norm = "head" if fields.flag("use_qk_norm") else "none"
    attention = grouped(fields, HeadRules(qkv_bias=fields.flag("attention_bias"), norm=norm))
    inner = fields.integer("moe_intermediate_size")
    experts = (fields.integer("n_routed_experts"), fields.integer("num_experts_per_tok"), inner)
    mlp = routed_mlp(d, experts, fields.count("n_shared_experts") * inner, bias=True)
    moe = LayerGroup(layers - first, attention, mlp, 2 * d)
    dense = LayerGroup(first, attention, gated_mlp(d, fields.integer("intermediate_size")), 2 * d)
    mtp = mtp_parameters(fields.count("num_nextn_predict_layers"), d, moe)
    return whole(fields, name, [dense, moe], mtp=mtp)


def _local_experts(fields: Fields, *, bias: bool = False) -> FeedForward:
    """Experts whose width is called `intermediate_size`."""
    experts = (
        fields.integer("num_local_experts"),
        fields.integer("num_experts_per_tok", "experts_per_token"),
        fields.integer("intermediate_size"),
    )
    return routed_mlp(fields.integer("hidden_size"), experts, bias=bias)


def read_mixtral(fields: Fields, name: str) -> ModelShape:
    """Mixtral: experts in every layer; a sliding window only where the file names one."""
    d = fields.integer("hidden_size")
    window = fields.count("sliding_window") or None
    attention = grouped(fields, HeadRules(), window)
    layers = fields.integer("num_hidden_layers")
    return whole(fields, name, [LayerGroup(layers, attention, _local_experts(fields), 2 * d)])


def read_gpt_oss(fields: Fields, name: str) -> ModelShape:
    """gpt-oss: biases everywhere, attention sinks, every other layer sees a window."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    mlp = _local_experts(fields, bias=True)
    biased = mlp.expert_parameters + 2 * mlp.expert_inner + d
    mlp = replace(mlp, expert_parameters=biased)
    rules = HeadRules(qkv_bias=True, out_bias=True, sinks=True)
    kinds = fields.items("layer_types")
    full = layers // 2 if kinds is None else sum(kind == "full_attention" for kind in kinds)
    near = grouped(fields, rules, fields.integer("sliding_window"))
    groups = [
        LayerGroup(full, grouped(fields, rules), mlp, 2 * d),
        LayerGroup(layers - full, near, mlp, 2 * d),
    ]
    return whole(fields, name, groups)


def read_minimax(fields: Fields, name: str) -> ModelShape:
    """MiniMax-M2 and M2.5: norms over all heads at once, a corrected router."""
    d = fields.integer("hidden_size")
    norm = "full" if fields.flag("use_qk_norm", default=True) else "none"
    layers = fields.integer("num_hidden_layers")
    mlp = _local_experts(fields, bias=True)
    moe = LayerGroup(layers, grouped(fields, HeadRules(norm=norm)), mlp, 2 * d)
    mtp = mtp_parameters(fields.count("num_mtp_modules"), d, moe)
    return whole(fields, name, [moe], mtp=mtp)


def read_minimax_sparse(fields: Fields, name: str) -> ModelShape:
    """MiniMax-M3: some layers choose blocks of keys with a small selector of their own."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    moe_flags = fields.items("moe_layer_freq") or [1] * layers
    sparse = fields.table("sparse_attention_config")
    sparse_flags = sparse.get("sparse_attention_freq") or [0] * layers
    plain = grouped(fields, HeadRules(norm="head"))
    heads, wide = (
        int(sparse.get("sparse_num_index_heads", 4)),
        int(sparse.get("sparse_index_dim", 128)),
    )
    chosen = replace(
        plain,
        parameters=plain.parameters + d * (heads + 1) * wide + 2 * wide,
        index_elements=wide,
        index_cost=heads * wide,
        met_tokens=int(sparse.get("sparse_topk_blocks", 16))
        * int(sparse.get("sparse_block_size", 128)),
    )
    inner = fields.integer("shared_intermediate_size")
    experts = _local_experts(fields, bias=True)
    moe = replace(experts, dense_parameters=3 * d * inner, dense_inner=inner)
    dense = gated_mlp(d, fields.integer("dense_intermediate_size"))
    groups = [
        LayerGroup(
            sum(
                bool(m) == is_moe and bool(s) == is_sparse
                for m, s in zip(moe_flags, sparse_flags, strict=True)
            ),
            chosen if is_sparse else plain,
            moe if is_moe else dense,
            2 * d,
        )
        for is_moe in (False, True)
        for is_sparse in (False, True)
    ]
    return whole(fields, name, groups)


def read_llama4(fields: Fields, name: str) -> ModelShape:
    """Llama 4's language model: one routed and one shared expert, chunks in 3 of 4 layers."""
    d, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    step = fields.integer("interleave_moe_layer_step", default=1)
    inner = fields.integer("intermediate_size")
    experts = (fields.integer("num_local_experts"), fields.integer("num_experts_per_tok"), inner)
    moe, every = routed_mlp(d, experts, inner), fields.integer("no_rope_layer_interval", default=4)
    chunk = fields.count("attention_chunk_size") or None
    far, near = grouped(fields, HeadRules()), grouped(fields, HeadRules(), chunk)
    counts: dict[tuple[bool, bool], int] = {}
    for n in range(layers):
        key = ((n + 1) % step == 0, (n + 1) % every == 0)
        counts[key] = counts.get(key, 0) + 1
    groups = [
        LayerGroup(
            count,
            far if is_far else near,
            moe if is_moe else gated_mlp(d, fields.integer("intermediate_size_mlp")),
            2 * d,
        )
        for (is_moe, is_far), count in counts.items()
    ]
    return whole(fields, name, groups)
