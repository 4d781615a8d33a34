"""Which families of models can the engine execute, and how do their checkpoints name experts?

The table is what people are shown (`moectl get engines`) and what a checkpoint's counts are checked
against. It is not what the engine decides by: the engine asks the model itself, and an architecture
that is not listed here is let through when its experts stand under a spelling that is known.
Standard library only.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One family: how its config calls itself, and what is particular about it."""

    name: str
    architectures: tuple[str, ...]
    kv: str
    experts: str
    also: str


KEYS_VALUES, LATENT = "keys and values", "latent"
PLAIN = "gate, up, down"

FAMILIES = (
    Family(
        "qwen3-moe", ("Qwen3MoeForCausalLM",), KEYS_VALUES, PLAIN, "sliding window, dense layers"
    ),
    Family(
        "qwen2-moe",
        ("Qwen2MoeForCausalLM",),
        KEYS_VALUES,
        PLAIN,
        "sliding window, gated shared expert",
    ),
    Family("mixtral", ("MixtralForCausalLM",), KEYS_VALUES, PLAIN, "sliding window"),
    Family("olmoe", ("OlmoeForCausalLM",), KEYS_VALUES, PLAIN, "clipping, query and key norms"),
    Family("deepseek-v2", ("DeepseekV2ForCausalLM",), LATENT, PLAIN, "shared experts, YaRN"),
    Family(
        "deepseek-v3",
        ("DeepseekV3ForCausalLM",),
        LATENT,
        PLAIN,
        "shared experts, grouped router with bias, YaRN",
    ),
    Family(
        "gpt-oss",
        ("GptOssForCausalLM",),
        KEYS_VALUES,
        "gate and up interleaved, down, biases; transposed",
        "sinks, sliding window, clamped gate, YaRN",
    ),
)

#: Layouts that every family runs in.
LAYOUTS = "experts over any number of devices; attention data-parallel"


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tensors of one expert are called: a prefix, then one leaf each for gate, up and down."""

    prefix: str
    leaves: tuple[str, str, str]

    def names(self, layer: int, expert: int) -> tuple[str, str, str]:
        """Gate, up and down of one expert; `layer` is the model's layer index."""
        prefix = self.prefix.format(layer=layer, expert=expert)
        gate, up, down = (f"{prefix}{leaf}.weight" for leaf in self.leaves)
        return gate, up, down


SPELLINGS = (
    Spelling("model.layers.{layer}.mlp.experts.{expert}.", ("gate_proj", "up_proj", "down_proj")),
    Spelling("model.layers.{layer}.block_sparse_moe.experts.{expert}.", ("w1", "w3", "w2")),
)
#: All experts of a layer in one tensor each: [E, ...].
FUSED = "model.layers.{layer}.mlp.experts.{part}"
FUSED_PARTS = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")

_ROUTED = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(.+)")


def layer_of_expert_tensor(name: str) -> int | None:
    """The layer of a routed expert's tensor; None for every other tensor."""
    match = _ROUTED.fullmatch(name)
    return int(match.group(1)) if match else None


def family_of(architecture: str) -> Family | None:
    """The listed family of an architecture."""
    return next((each for each in FAMILIES if architecture in each.architectures), None)
