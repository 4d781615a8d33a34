"""What is the model's skeleton, and how do weights that lie elsewhere become its parameters?

A template is the transformers model on the meta device: no memory, no weights, 20-30 ms to build,
made once by the fork server. Binding puts tensors over mapped pages into it (1-2 ms). Its experts
modules own no parameter: expert weights live in slots (moe.py). Models are recognised by what their
modules can do, not by a list of names (`probe.py`), and what cannot run is refused with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ...core.errors import CheckpointError, EngineError
from . import hooks, probe, rowwise
from .forms import ExpertForm, KvForm

Template: TypeAlias = Any  # a transformers *ForCausalLM; its types are not ours to follow


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model that the engine needs. `moe_layers` are model layer indices."""

    layers: int
    moe_layers: tuple[int, ...]
    experts_per_token: int
    vocab: int
    context_tokens: int
    expert: ExpertForm
    kv: KvForm

    @property
    def experts(self) -> int:
        """Routed experts of one MoE layer."""
        return self.expert.experts

    @property
    def hidden(self) -> int:
        """Width of a row."""
        return self.expert.hidden

    @property
    def inner(self) -> int:
        """Width inside an expert."""
        return self.expert.inner

    @property
    def activation(self) -> str:
        """The experts' activation by name."""
        return self.expert.activation

    def kv_block_shape(self, block_tokens: int) -> tuple[int, int, int, int, int]:
        """[layers, parts, block_tokens, heads, width]: one KV block."""
        return self.kv.block_shape(block_tokens)


def build_template(folder: Path | str, dtype: torch.dtype = torch.float32) -> Template:
    """The model of a checkpoint folder, on the meta device, with moectl's hooks in place.

    Raises: CheckpointError when the folder has no readable config or the model is unsupported.
    """
    config = _read_config(Path(folder))
    hooks.register()
    template = _build(config, dtype)
    template.eval()
    rowwise.adopt(template)
    try:
        template.moectl_forms = _ask(template)
    except probe.Refusal as refusal:
        raise CheckpointError(
            f"{config.model_type} cannot run here: {refusal}",
            next_step="`moectl get engines` lists what this engine can execute",
        ) from refusal
    template.moectl_shared = _shared_specs(template)
    template.moectl_row_weights = rowwise.asked_weights(template)
    return template


def _build(config: Any, dtype: torch.dtype) -> Template:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{config.model_type} cannot be built here: {reason}") from error


def _ask(template: Template) -> probe.Forms:
    """Put the hooks in place and see what the model does with them. Raises probe.Refusal."""
    modules = expert_modules(template)
    form = probe.expert_form(modules)
    seats = [hooks.Seat(layer) for layer in range(len(modules))]
    for module, seat in zip(modules, seats, strict=True):
        module.moectl_seat = seat
        for name in list(module._parameters):
            module._parameters[name] = None
    template.set_attn_implementation(hooks.ATTENTION)
    template.set_experts_implementation(hooks.EXPERTS)
    kv, experts_per_token = probe.try_forward(template, seats, len(_layers(template)))
    return probe.Forms(form, kv, experts_per_token)


def _layers(template: Template) -> list[Any]:
    try:
        return list(template.get_submodule("model.layers").children())
    except AttributeError as error:
        raise probe.Refusal("it has no model.layers") from error


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


def model_shape(template: Template) -> ModelShape:
    """What a built template is, in numbers."""
    forms: probe.Forms = template.moectl_forms
    layers = _layers(template)
    return ModelShape(
        layers=len(layers),
        moe_layers=tuple(i for i, layer in enumerate(layers) if expert_modules(layer)),
        experts_per_token=forms.experts_per_token,
        vocab=template.config.vocab_size,
        context_tokens=template.config.max_position_embeddings,
        expert=forms.expert,
        kv=forms.kv,
    )


def expert_tensor_shapes(template: Template) -> dict[str, tuple[int, ...]]:
    """The tensors of one expert in slot order: gate_up, gate rows first, down, then biases."""
    forms: probe.Forms = template.moectl_forms
    return forms.expert.tensor_shapes


def shared_tensor_specs(template: Template) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a rank needs whole: parameters and persistent buffers.

    Tied weights appear once, under the first of their names. Found once, when the template is
    built: walking a model's modules takes milliseconds, also beside a serving engine.
    """
    known: dict[str, tuple[int, ...]] = template.moectl_shared
    return dict(known)


def _shared_specs(template: Template) -> dict[str, tuple[int, ...]]:
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
        kind = type(owner._parameters[leaf])  # a RowWeight stays one
        owner._parameters[leaf] = kind(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _rebuild_rotary(template: Template) -> None:
    """Rotary frequencies are buffers outside the checkpoint: make them anew, with memory."""
    for name, module in list(template.named_modules()):
        frequencies = [held for leaf, held in module._buffers.items() if leaf.endswith("inv_freq")]
        if any(held is not None and held.is_meta for held in frequencies):
            owner_name, _, leaf = name.rpartition(".")
            fresh = type(module)(module.config)
            setattr(template.get_submodule(owner_name), leaf, fresh)


def _all_tensors(template: Template) -> list[tuple[str, Tensor]]:
    return [*template.named_parameters(), *template.named_buffers()]
