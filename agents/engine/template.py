"""What is the model's skeleton, and how do weights that lie elsewhere become its parameters?

A template is the transformers model on the meta device: no memory, no weights, 20-30 ms to build,
made once by the fork server. Binding puts tensors over mapped pages into it (1-2 ms). Its experts
modules own no parameter: expert weights live in slots (moe.py). Models are recognised by what their
modules can do, not by a list of names; what is missing is said by `unsupported_reason`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from ...core.errors import CheckpointError, EngineError
from . import hooks, rowwise

Template: TypeAlias = Any  # a transformers *ForCausalLM; its types are not ours to follow


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model that the engine needs. `moe_layers` are model layer indices."""

    layers: int
    moe_layers: tuple[int, ...]
    experts: int
    experts_per_token: int
    hidden: int
    inner: int
    activation: str
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int

    def kv_block_shape(self, block_tokens: int) -> tuple[int, int, int, int, int]:
        """[layers, 2, block_tokens, kv_heads, head_dim]: one KV block."""
        return (self.layers, 2, block_tokens, self.kv_heads, self.head_dim)


def build_template(folder: Path | str, dtype: torch.dtype = torch.float32) -> Template:
    """The model of a checkpoint folder, on the meta device, with moectl's hooks in place.

    Raises: CheckpointError when the folder has no readable config or the model is unsupported.
    """
    config = _read_config(Path(folder))
    hooks.register()
    with torch.device("meta"):
        template = AutoModelForCausalLM.from_config(config, dtype=dtype)
    template.eval()
    reason = unsupported_reason(template)
    if reason:
        raise CheckpointError(f"{config.model_type} cannot run here: {reason}")
    for layer, module in enumerate(expert_modules(template)):
        module.moectl_seat = hooks.Seat(layer)
        for name in list(module._parameters):
            module._parameters[name] = None
    rowwise.adopt(template)
    template.set_attn_implementation(hooks.ATTENTION)
    template.set_experts_implementation(hooks.EXPERTS)
    return template


def _read_config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json", next_step="check the model's path")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from error


def expert_modules(template: Template) -> list[Any]:
    """The routed-experts modules in layer order: found by the interface they share."""
    return [module for module in template.modules() if hasattr(module, "_is_expert_parallel")]


def unsupported_reason(template: Template) -> str:
    """Why this engine cannot run a freshly built template, or "" when it can."""
    config, modules = template.config, expert_modules(template)
    if not modules:
        return "it has no routed experts"
    if getattr(config, "kv_lora_rank", None):
        return "latent attention (kv_lora_rank) has no page format yet"
    for module in modules:
        wanted = {"gate_up_proj", "down_proj"}
        if module.has_bias or module.is_transposed or not module.is_concatenated:
            return "experts with biases or transposed weights have no slot format yet"
        if set(module._parameters) != wanted or not module.has_gate:
            return f"experts hold {sorted(module._parameters)}, expected {sorted(wanted)}"
    if len({module.gate_up_proj.shape for module in modules}) > 1:
        return "layers with different expert shapes"
    return ""


def model_shape(template: Template) -> ModelShape:
    """Read the numbers from config and modules."""
    config = template.config
    heads = config.num_attention_heads
    shapes = expert_tensor_shapes(config)
    layers = template.get_submodule("model.layers")
    moe_layers = tuple(
        index for index, layer in enumerate(layers.children()) if expert_modules(layer)
    )
    return ModelShape(
        layers=config.num_hidden_layers,
        moe_layers=moe_layers,
        experts=_first(config, "num_local_experts", "num_experts", "n_routed_experts"),
        experts_per_token=config.num_experts_per_tok,
        hidden=config.hidden_size,
        inner=shapes["down"][1],
        activation=config.hidden_act,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab=config.vocab_size,
        context_tokens=config.max_position_embeddings,
    )


def expert_tensor_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """The tensors of one expert in slot order: gate_up (2I, H), gate first, then down (H, I)."""
    inner = _first(config, "moe_intermediate_size", "intermediate_size")
    return {"gate_up": (2 * inner, config.hidden_size), "down": (config.hidden_size, inner)}


def shared_tensor_specs(template: Template) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a rank needs whole: parameters and persistent buffers.

    Tied weights appear once, under the first of their names.
    """
    specs = {name: tuple(p.shape) for name, p in template.named_parameters()}
    persistent = template.state_dict()
    specs.update(
        {name: tuple(b.shape) for name, b in template.named_buffers() if name in persistent}
    )
    return specs


def bind_shared(template: Template, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors (over mapped pages) in place of the template's, without a copy.

    Raises: EngineError naming the first missing tensor or wrong shape. Binding again replaces.
    """
    for name, shape in shared_tensor_specs(template).items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise EngineError(f"tensor {name} is {found}, expected shape {shape}")
        _put(template, name, tensor)
    if getattr(template.config, "tie_word_embeddings", False):
        template.tie_weights()
    _rebuild_rotary(template)
    left = [name for name, t in _all_tensors(template) if t.is_meta]
    if left:
        raise EngineError(f"tensors left without memory: {left[:5]}")


def _put(template: Template, name: str, tensor: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = template.get_submodule(owner_name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _rebuild_rotary(template: Template) -> None:
    """Rotary frequencies are buffers outside the checkpoint: make them anew, with memory."""
    for name, module in list(template.named_modules()):
        if "inv_freq" in module._buffers and module._buffers["inv_freq"].is_meta:
            owner_name, _, leaf = name.rpartition(".")
            fresh = type(module)(module.config)
            setattr(template.get_submodule(owner_name), leaf, fresh)


def _all_tensors(template: Template) -> list[tuple[str, Tensor]]:
    return [*template.named_parameters(), *template.named_buffers()]


def _first(config: Any, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if value:
            return int(value)
    raise CheckpointError(f"the config has none of {', '.join(names)}")
