"""What a model is, in numbers: the layers, experts and bytes that plans and the engine count with.

Read from `config.json` and the safetensors headers of a checkpoint folder; nothing is estimated and
no weight is read. A checkpoint whose experts cannot be counted exactly is refused with the reason,
never guessed. Standard library only.

Legend: L layers, M MoE layers, E experts of a layer, H hidden width, I width of one expert.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import TensorEntry, read_config, read_tensor_entries
from .dtypes import FLOAT32, checkpoint_dtype
from .errors import CheckpointError
from .families import FAMILIES, FUSED, SPELLINGS, family_of, layer_of_expert_tensor

SUPPORTED_ARCHITECTURES = tuple(name for each in FAMILIES for name in each.architectures)


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
    expert_bias_elements: int = 0  # of one expert
    kv_elements: int = 0  # of one token in one layer; 0: keys and values of every KV head
    # The parsed config.json itself, for readers that need more of it (the planner's).
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    dtype: str = FLOAT32  # of the checkpoint's weights, as its config says

    @property
    def expert_elements(self) -> int:
        """Elements of one expert: gate, up and down projections, H x I each, and its biases."""
        return 3 * self.hidden * self.expert_hidden + self.expert_bias_elements

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
        """Bytes of keys and values, or of latents, of one token over all layers."""
        elements = self.kv_elements or 2 * self.kv_heads * self.head_dim
        return self.layers * elements * dtype_bytes


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
    if not isinstance(name, str):
        raise CheckpointError(f"{folder / 'config.json'}: architectures names no model")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{folder / 'config.json'}: its weights are quantized, which no engine here reads",
            next_step="save the checkpoint in bfloat16 and declare that folder",
        )
    return name


def _count(
    folder: Path, config: Mapping[str, Any], architecture: str, entries: Mapping[str, TensorEntry]
) -> ModelFacts:
    read = _Fields(folder / "config.json", config)
    layers = read.integer("num_hidden_layers")
    heads = read.integer("num_attention_heads")
    hidden = read.integer("hidden_size")
    moe_layers = _moe_layers(folder, config, architecture, entries)
    experts = read.integer(
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"
    )
    inner = read.integer("moe_intermediate_size", "intermediate_size")
    bias = FUSED.format(layer=moe_layers[0], part="down_proj_bias") in entries
    latent = config.get("kv_lora_rank")
    return ModelFacts(
        architecture=architecture,
        layers=layers,
        moe_layers=moe_layers,
        experts_per_layer=(experts,) * len(moe_layers),
        experts_per_token=read.integer("num_experts_per_tok", "moe_k", "moe_topk"),
        hidden=hidden,
        expert_hidden=inner,
        heads=heads,
        kv_heads=read.integer("num_key_value_heads", default=heads),
        head_dim=read.integer("head_dim", default=hidden // heads),
        vocab=read.integer("vocab_size"),
        context_tokens=read.integer("max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        shared_elements=_shared_elements(config, layers, entries),
        expert_bias_elements=2 * inner + hidden if bias else 0,
        kv_elements=read.integer("kv_lora_rank") + read.integer("qk_rope_head_dim")
        if latent
        else 0,
        config=config,
        dtype=checkpoint_dtype(config),
    )


def _moe_layers(
    folder: Path,
    config: Mapping[str, Any],
    architecture: str,
    entries: Mapping[str, TensorEntry],
) -> tuple[int, ...]:
    """Layers with routed experts: by the rule of a listed family, else where experts are found."""
    layers = _Fields(folder / "config.json", config).integer("num_hidden_layers")
    held = {layer_of_expert_tensor(name) for name in entries}
    found = tuple(sorted(layer for layer in held if layer is not None and layer < layers))
    if not found:
        raise CheckpointError(
            f"{folder / 'config.json'}: architecture {architecture!r} is unsupported: it holds no"
            " routed experts under a name that is known",
            next_step=f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}, and models like them",
        )
    if family_of(architecture) is None:
        return found
    step = int(config.get("decoder_sparse_step") or 1)
    dense = {*(config.get("mlp_only_layers") or ()), *range(config.get("first_k_dense_replace", 0))}
    return tuple(n for n in range(layers) if n not in dense and (n + 1) % step == 0)


def _shared_elements(
    config: Mapping[str, Any], layers: int, entries: Mapping[str, TensorEntry]
) -> int:
    """Elements outside the routed experts; a head tied to the embeddings is not held twice.

    Layers past the model's own (heads that predict further tokens) are not loaded.
    """
    tied = bool(config.get("tie_word_embeddings", False))
    past = tuple(f"model.layers.{layer}." for layer in range(layers, layers + 8))
    return sum(
        entry.element_count
        for name, entry in entries.items()
        if layer_of_expert_tensor(name) is None
        and not name.startswith(past)
        and not (tied and name == "lm_head.weight")
    )


def _check_experts(folder: Path, facts: ModelFacts, entries: Mapping[str, TensorEntry]) -> None:
    """Every expert of every MoE layer must be there, in the shape that the config says."""
    for layer, count in zip(facts.moe_layers, facts.experts_per_layer, strict=True):
        for name, shape in _expected(facts, layer, count, entries):
            entry = entries.get(name)
            if entry is None:
                raise CheckpointError(f"{folder}: tensor {name} is missing")
            if entry.shape != shape:
                raise CheckpointError(
                    f"{entry.file}: tensor {name} is {list(entry.shape)},"
                    f" config.json says {list(shape)}"
                )


def _expected(
    facts: ModelFacts, layer: int, count: int, entries: Mapping[str, TensorEntry]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one layer's experts, in the spelling that the checkpoint uses."""
    hidden, inner = facts.hidden, facts.expert_hidden
    fused = FUSED.format(layer=layer, part="gate_up_proj")
    if fused in entries:
        is_transposed = entries[fused].shape[1:] == (hidden, 2 * inner)
        wide = (count, hidden, 2 * inner) if is_transposed else (count, 2 * inner, hidden)
        tall = (count, inner, hidden) if is_transposed else (count, hidden, inner)
        yield fused, wide
        yield FUSED.format(layer=layer, part="down_proj"), tall
        if facts.expert_bias_elements:
            yield FUSED.format(layer=layer, part="gate_up_proj_bias"), (count, 2 * inner)
            yield FUSED.format(layer=layer, part="down_proj_bias"), (count, hidden)
        return
    used = (each for each in SPELLINGS if any(n in entries for n in each.names(layer, 0)))
    spelling = next(used, SPELLINGS[0])
    for expert in range(count):
        gate, up, down = spelling.names(layer, expert)
        yield from ((gate, (inner, hidden)), (up, (inner, hidden)), (down, (hidden, inner)))


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
