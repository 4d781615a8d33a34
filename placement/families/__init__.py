"""From a `config.json` to a `ModelShape`, one file a kind of family.

`read_shape` is the way in. A family is known when its reader is in the table below; everything else
is refused with the fields that would be needed, because a guessed shape makes a plan that breaks on
the machine. Pure: it takes the parsed object, reads no files.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import CheckpointError
from ..model_facts import ModelShape
from . import compressed, dense, hybrid, latent, routed
from .fields import Fields

Reader = Callable[[Fields, str], ModelShape]

READERS: dict[str, Reader] = {
    "LlamaForCausalLM": dense.read,
    "Qwen2ForCausalLM": dense.read,
    "Qwen3ForCausalLM": dense.read,
    "DeepseekV2ForCausalLM": latent.read,
    "DeepseekV3ForCausalLM": latent.read,
    "DeepseekV32ForCausalLM": latent.read,
    "GlmMoeDsaForCausalLM": latent.read,
    "KimiK25ForConditionalGeneration": latent.read,
    "DeepseekV4ForCausalLM": compressed.read,
    "Glm4MoeForCausalLM": routed.read_glm,
    "Qwen3MoeForCausalLM": routed.read_qwen,
    "Qwen2MoeForCausalLM": routed.read_qwen2_moe,
    "OlmoeForCausalLM": routed.read_olmoe,
    "MixtralForCausalLM": routed.read_mixtral,
    "GptOssForCausalLM": routed.read_gpt_oss,
    "MiniMaxM2ForCausalLM": routed.read_minimax,
    "MiniMaxM3SparseForConditionalGeneration": routed.read_minimax_sparse,
    "Llama4ForConditionalGeneration": routed.read_llama4,
    "Llama4ForCausalLM": routed.read_llama4,
    "Qwen3NextForCausalLM": hybrid.read,
    "Qwen3_5MoeForConditionalGeneration": hybrid.read,
    "Qwen3_5MoeForCausalLM": hybrid.read,
}
# Known by name, not by content: what their files lack stands here.
INCOMPLETE = {
    "KimiK3ForCausalLM": "num_experts_per_token, num_shared_experts and the list of KDA layers "
    "are not in the published file",
}


def read_shape(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
    """The shape that a parsed `config.json` describes; raises CheckpointError naming the gap."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    reader = READERS.get(name)
    if reader is None:
        lacking = INCOMPLETE.get(name, "how its layers are sized is not known")
        raise CheckpointError(
            f"{where}: architecture {name or 'missing'!r} is unsupported: {lacking}",
            next_step=f"supported: {', '.join(sorted(READERS))}",
        )
    # Multimodal files keep the language model one level down; the outer fields describe the tower.
    inner = config.get("text_config")
    fields = Fields({**config, **inner} if isinstance(inner, dict) else dict(config), where)
    return reader(fields, name)
