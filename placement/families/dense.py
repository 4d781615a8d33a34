"""Dense decoders: Llama, Qwen2 and Qwen3. Planned for as the degenerate case without experts."""

from ..model_facts import LayerGroup, ModelShape
from .blocks import HeadRules, gated_mlp, grouped, whole
from .fields import Fields

RULES = {
    "LlamaForCausalLM": HeadRules(),
    "Qwen2ForCausalLM": HeadRules(qkv_bias=True),
    "Qwen3ForCausalLM": HeadRules(norm="head"),
}


def read(fields: Fields, name: str) -> ModelShape:
    """The shape of a dense model."""
    d = fields.integer("hidden_size")
    use_window = fields.flag("use_sliding_window")
    window = fields.integer("sliding_window") if use_window else None
    layer = LayerGroup(
        count=fields.integer("num_hidden_layers"),
        attention=grouped(fields, RULES[name], window),
        feed_forward=gated_mlp(d, fields.integer("intermediate_size")),
        other_parameters=2 * d,
    )
    return whole(fields, name, [layer])
