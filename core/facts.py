"""What a model is, in numbers: the layers, experts and bytes that plans and the engine count with.

Read from `config.json` and the safetensors headers of a checkpoint folder; nothing is estimated and
no weight is read. Families whose experts we cannot count exactly are refused by name, never
guessed. Standard library only.

Legend: L layers, M MoE layers, E experts of a layer, H hidden width, I width of one expert.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import TensorEntry, read_config, read_tensor_entries
from .errors import CheckpointError

SUPPORTED_ARCHITECTURES = ("Qwen3MoeForCausalLM",)
_EXPERT_TENSOR = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(\w+_proj)\.weight")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The counts of one model. `moe_layers[m]` is the layer of MoE layer m."""

    architecture: str
    layers: int
    moe_layers: tuple[int, ...]
    experts_per_layer: tuple[int, ...]  # [M]
    experts_per_token: int
    hidden: int
    expert_hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    tied_embeddings: bool
    shared_elements: int  # of every weight that is not a routed expert, once

    @property
    def expert_elements(self) -> int:
        """Elements of one expert: gate, up and down projections, H x I each."""
        return 3 * self.hidden * self.expert_hidden

    @property
    def expert_count(self) -> int:
        """Experts of all MoE layers together."""
        return sum(self.experts_per_layer)

    def expert_bytes(self, dtype_bytes: int) -> int:
        """Bytes of one expert when an element takes `dtype_bytes`."""
        return self.expert_elements * dtype_bytes

    def shared_bytes(self, dtype_bytes: int) -> int:
        """Bytes of everything but the routed experts; tied embeddings count once."""
        return self.shared_elements * dtype_bytes

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype_bytes


def read_model_facts(folder: Path) -> ModelFacts:
    """Count a checkpoint; raises CheckpointError naming the file, field or tensor at fault."""
    config = read_config(folder)
    architecture = _architecture(folder, config)
    entries = read_tensor_entries(folder)
    facts = _count(folder, config, architecture, entries)
    _check_experts(folder, facts, entries)
    return facts


def _architecture(folder: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in SUPPORTED_ARCHITECTURES:
        raise CheckpointError(
            f"{folder / 'config.json'}: architecture {name!r} is unsupported: how its experts are"
            " named and sized is not known",
            next_step=f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}",
        )
    return str(name)


def _count(
    folder: Path, config: Mapping[str, Any], architecture: str, entries: Mapping[str, TensorEntry]
) -> ModelFacts:
    read = _Fields(folder / "config.json", config)
    layers = read.integer("num_hidden_layers")
    heads = read.integer("num_attention_heads")
    hidden = read.integer("hidden_size")
    experts = read.integer("num_experts", "num_local_experts")
    moe_layers = _moe_layers(config, layers)
    return ModelFacts(
        architecture=architecture,
        layers=layers,
        moe_layers=moe_layers,
        experts_per_layer=(experts,) * len(moe_layers),
        experts_per_token=read.integer("num_experts_per_tok"),
        hidden=hidden,
        expert_hidden=read.integer("moe_intermediate_size"),
        heads=heads,
        kv_heads=read.integer("num_key_value_heads", default=heads),
        head_dim=read.integer("head_dim", default=hidden // heads),
        vocab=read.integer("vocab_size"),
        context_tokens=read.integer("max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        shared_elements=_shared_elements(config, entries),
    )


def _moe_layers(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Layers with routed experts by the family's rule: every n-th, but for a list of dense ones."""
    step = int(config.get("decoder_sparse_step") or 1)
    dense = set(config.get("mlp_only_layers") or ())
    return tuple(n for n in range(layers) if n not in dense and (n + 1) % step == 0)


def _shared_elements(config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> int:
    """Elements outside the routed experts; a head tied to the embeddings is not held twice."""
    tied = bool(config.get("tie_word_embeddings", False))
    return sum(
        entry.element_count
        for name, entry in entries.items()
        if not _EXPERT_TENSOR.fullmatch(name) and not (tied and name == "lm_head.weight")
    )


def _check_experts(folder: Path, facts: ModelFacts, entries: Mapping[str, TensorEntry]) -> None:
    """Every expert of every MoE layer must be there, in the shape that the config says."""
    wide, tall = (facts.expert_hidden, facts.hidden), (facts.hidden, facts.expert_hidden)
    shapes = {"gate_proj": wide, "up_proj": wide, "down_proj": tall}
    for layer, count in zip(facts.moe_layers, facts.experts_per_layer, strict=True):
        for expert in range(count):
            for part, shape in shapes.items():
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
                entry = entries.get(name)
                if entry is None:
                    raise CheckpointError(f"{folder}: tensor {name} is missing")
                if entry.shape != shape:
                    raise CheckpointError(
                        f"{entry.file}: tensor {name} is {list(entry.shape)},"
                        f" config.json says {list(shape)}"
                    )


class _Fields:
    """Integers of a config by name, with an error that says which file lacks which field."""

    def __init__(self, file: Path, config: Mapping[str, Any]) -> None:
        self._file = file
        self._config = config

    def integer(self, *names: str, default: int | None = None) -> int:
        for name in names:
            value = self._config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            if value is not None:
                raise CheckpointError(f"{self._file}: {name} is {value!r}, not a positive integer")
        if default is None:
            raise CheckpointError(f"{self._file}: {' or '.join(names)} is missing")
        return default
