"""How does one process run a whole model, without fleet, HMM or control plane?

For benches, GPUs at hand and tests: transformers reads the checkpoint (so every family's key names
are its business), the shared tensors are bound to the template as they are, the experts are laid
into one flat tensor of slots, and KV is a plain tensor. The worker never uses this file.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from .engine import Engine, Limits
from .forms import ExpertForm
from .grammar import Grammars
from .kv import BlockAllocator, KvPool
from .model import (
    ForwardPass,
    Template,
    bind_shared,
    build_template,
    expert_tensor_shapes,
    model_shape,
    shared_tensor_specs,
)
from .moe import ExpertSlots, LocalMoe
from .template import expert_modules


def open_forward(folder: Path | str) -> tuple[ForwardPass, LocalMoe]:
    """Load a checkpoint folder into plain memory. Raises as `build_template` does."""
    template = build_template(folder)
    state = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).state_dict()
    bind_shared(template, {name: state[name] for name in shared_tensor_specs(template)})
    return ForwardPass(template), LocalMoe(slots_from_state(template, state))


def slots_from_state(
    template: Template, state: Mapping[str, Tensor], order: Sequence[int] | None = None
) -> ExpertSlots:
    """Lay a state dict's stacked experts into slots; `order[layer * E + expert]` is the slot."""
    shape, shapes = model_shape(template), expert_tensor_shapes(template)
    names = [n for n, m in template.named_modules() if m in expert_modules(template)]
    count = len(names) * shape.experts
    slot_of_copy = list(range(count)) if order is None else list(order)
    slot_elements = sum(math.prod(dims) for dims in shapes.values())
    flat = torch.empty(count * slot_elements)
    slot_of: dict[tuple[int, int], int] = {}
    for layer, name in enumerate(names):
        for expert in range(shape.experts):
            slot = slot_of_copy[layer * shape.experts + expert]
            parts = _expert_parts(state, name, expert, shape.expert)
            flat[slot * slot_elements : (slot + 1) * slot_elements] = torch.cat(parts)
            slot_of[layer, expert] = slot
    extent = (len(names), shape.experts)
    return ExpertSlots.over(flat, slot_elements, shapes, slot_of, extent, shape.expert)


def _expert_parts(
    state: Mapping[str, Tensor], name: str, expert: int, form: ExpertForm
) -> list[Tensor]:
    """One expert's tensors in slot order, each flat."""
    gate_up, down = state[f"{name}.gate_up_proj"][expert], state[f"{name}.down_proj"][expert]
    if form.is_transposed:
        gate_up, down = gate_up.T, down.T
    parts = [gate_up, down]
    if form.has_bias:
        parts += [
            state[f"{name}.gate_up_proj_bias"][expert],
            state[f"{name}.down_proj_bias"][expert],
        ]
    if form.is_interleaved:
        for at in range(0, len(parts), 2):
            parts[at] = torch.cat((parts[at][::2], parts[at][1::2]))
    return [part.flatten() for part in parts]


def open_engine(
    forward: ForwardPass,
    limits: Limits,
    kv_blocks: int,
    block_order: Sequence[int] | None = None,
    folder: Path | str | None = None,
) -> Engine:
    """An engine over a plain KV tensor. Unwritten KV is NaN: reading it would show.

    `folder` holds the tokenizer, for requests with a grammar.
    """
    block_shape = forward.shape.kv_block_shape(limits.block_tokens)
    kv = KvPool(torch.full((kv_blocks, *block_shape), float("nan")))
    grammars = Grammars(folder, forward.shape.vocab) if folder is not None else None
    return Engine(forward, kv, limits, BlockAllocator(kv_blocks, block_order), grammars)
