"""Small random models of every family, each also with everything on that the family has."""

from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    Dots1Config,
    Ernie4_5_MoeConfig,
    ExaoneMoeConfig,
    Glm4MoeConfig,
    GptOssConfig,
    GraniteMoeConfig,
    HunYuanMoEV1Config,
    LagunaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN3 = {"num_experts": 8, "moe_intermediate_size": 32, "head_dim": 16}
QWEN2 = {"num_experts": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}
LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 32,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "topk_group": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
SLIDES = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "qwen3": lambda: Qwen3MoeConfig(**COMMON, **QWEN3),
    "qwen3-tied-window": lambda: Qwen3MoeConfig(
        **COMMON, **QWEN3, tie_word_embeddings=True, use_sliding_window=True, sliding_window=12
    ),
    "qwen3-dense-first": lambda: Qwen3MoeConfig(**COMMON, **QWEN3, mlp_only_layers=[0]),
    "qwen2": lambda: Qwen2MoeConfig(**COMMON, **QWEN2),
    "qwen2-tied-window": lambda: Qwen2MoeConfig(
        **COMMON,
        **QWEN2,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=12,
        max_window_layers=1,
    ),
    "mixtral": lambda: MixtralConfig(**COMMON, num_local_experts=4),
    "mixtral-tied-window": lambda: MixtralConfig(
        **COMMON, num_local_experts=4, sliding_window=12, tie_word_embeddings=True
    ),
    "olmoe": lambda: OlmoeConfig(**COMMON, num_experts=8),
    "olmoe-clip-tied-norm": lambda: OlmoeConfig(
        **COMMON, num_experts=8, clip_qkv=0.5, tie_word_embeddings=True, norm_topk_prob=True
    ),
    "deepseek2": lambda: DeepseekV2Config(
        **COMMON | LATENT, q_lora_rank=None, n_group=1, topk_method="greedy"
    ),
    "deepseek2-grouped-tied-yarn": lambda: DeepseekV2Config(
        **COMMON | LATENT,
        q_lora_rank=24,
        n_group=4,
        topk_method="group_limited_greedy",
        routed_scaling_factor=1.5,
        tie_word_embeddings=True,
        rope_parameters=YARN | {"mscale_all_dim": 0.7, "mscale": 0.7},
    ),
    "deepseek3": lambda: DeepseekV3Config(**COMMON | LATENT, q_lora_rank=24, n_group=2),
    "deepseek3-tied-plain": lambda: DeepseekV3Config(
        **COMMON | LATENT,
        q_lora_rank=None,
        n_group=1,
        rope_interleave=False,
        tie_word_embeddings=True,
        norm_topk_prob=False,
        rope_parameters=YARN | {"mscale_all_dim": 1.0, "mscale": 1.0},
    ),
    "gpt-oss": lambda: GptOssConfig(**COMMON, **SLIDES, num_local_experts=8, head_dim=16),
    "gpt-oss-tied-yarn-clip": lambda: GptOssConfig(
        **COMMON,
        **SLIDES,
        num_local_experts=8,
        head_dim=16,
        tie_word_embeddings=True,
        swiglu_limit=0.5,
        rope_parameters=YARN,
    ),
    # None of these is named anywhere in the engine: they have the same interface.
    "glm4": lambda: Glm4MoeConfig(
        **COMMON,
        head_dim=16,
        n_routed_experts=8,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        use_qk_norm=True,
    ),
    "ernie": lambda: Ernie4_5_MoeConfig(
        **COMMON,
        num_experts=8,
        moe_intermediate_size=32,
        moe_layer_start_index=1,
    ),
    "hunyuan": lambda: HunYuanMoEV1Config(**COMMON, num_experts=4, head_dim=16),
    "granite": lambda: GraniteMoeConfig(**COMMON, num_local_experts=4),
    "exaone": lambda: ExaoneMoeConfig(  # names its window on every layer, passes it on some
        **COMMON | {"num_hidden_layers": 4},
        head_dim=16,
        num_experts=8,
        moe_intermediate_size=32,
        sliding_window=12,
        n_group=1,
        topk_group=1,
    ),
    "laguna": lambda: LagunaConfig(  # rotary frequencies of its own for each kind of layer
        **COMMON, head_dim=16, num_experts=8, moe_intermediate_size=32, sliding_window=12
    ),
    "dots1": lambda: Dots1Config(
        **COMMON,
        head_dim=16,
        n_routed_experts=8,
        n_shared_experts=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
}
