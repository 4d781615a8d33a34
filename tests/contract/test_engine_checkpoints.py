"""A checkpoint on disk, its counts, and the engine's slots and pages agree, for every family.

`core.facts` counts without torch, `memory.loader` reads without transformers, and the engine asks
the model itself: three ways to the same numbers.
"""

import math

import pytest
import torch
from moe_families import FAMILIES
from transformers import AutoModelForCausalLM

from moectl.agents.engine import local
from moectl.agents.engine.model import build_template, model_shape, shared_tensor_specs
from moectl.core.facts import SUPPORTED_ARCHITECTURES, read_model_facts
from moectl.core.families import FAMILIES as LISTED
from moectl.memory.layout import ExpertShape
from moectl.memory.loader import CheckpointReader, ExpertStyle, read_expert_into

UNLISTED = ("glm4", "ernie", "hunyuan", "granite", "dots1", "exaone", "laguna")
OF_LISTED_FAMILIES = [name for name in FAMILIES if name.split("-")[0] not in UNLISTED]


@pytest.fixture(scope="module", params=OF_LISTED_FAMILIES)
def model(request, tmp_path_factory):
    """(folder, state dict, template, shape) of a small random model."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp(request.param)
    made = AutoModelForCausalLM.from_config(FAMILIES[request.param]())
    for name, tensor in made.named_parameters():
        if "bias" in name or "sinks" in name:
            torch.nn.init.normal_(tensor)
    made.save_pretrained(folder)
    template = build_template(folder)
    return folder, made.state_dict(), template, model_shape(template)


def test_counts_are_those_of_the_engine(model):
    folder, state, template, shape = model
    facts = read_model_facts(folder)
    assert (facts.layers, facts.moe_layers) == (shape.layers, shape.moe_layers)
    assert set(facts.experts_per_layer) == {shape.experts}
    assert facts.experts_per_token == shape.experts_per_token
    slot = ExpertShape(shape.hidden, shape.inner, "float32", shape.expert.has_bias)
    assert facts.expert_bytes(4) == slot.bytes
    assert facts.kv_bytes_per_token(4) == 4 * math.prod(shape.kv_block_shape(16)) // 16
    shared = shared_tensor_specs(template)
    assert facts.shared_elements == sum(state[name].numel() for name in shared)


def test_shared_tensors_are_found_under_the_models_names(model):
    folder, state, template, _ = model
    with CheckpointReader(folder) as reader:
        for name, dims in shared_tensor_specs(template).items():
            out = torch.empty(dims)
            reader.read_tensor_into(name, out)
            assert torch.equal(out, state[name].float()), name


def test_a_slot_read_from_the_file_is_the_slot_of_the_state_dict(model):
    folder, state, template, shape = model
    weights = local.slots_from_state(template, state).weights
    form = shape.expert
    with CheckpointReader(folder) as reader:
        for layer, model_layer in enumerate(shape.moe_layers):
            for expert in (0, shape.experts - 1):
                parts = {name: torch.empty(dims) for name, dims in form.tensor_shapes.items()}
                biases = parts.get("gate_up_bias"), parts.get("down_bias")
                style = ExpertStyle(form.is_transposed, form.is_interleaved, *biases)
                read_expert_into(
                    reader, model_layer, expert, parts["gate_up"], parts["down"], style
                )
                slot = layer * shape.experts + expert
                assert torch.equal(parts["gate_up"], weights.gate_up_SJH[slot])
                assert torch.equal(parts["down"], weights.down_SHI[slot])
                if form.has_bias:
                    assert torch.equal(parts["gate_up_bias"], weights.gate_up_bias_SJ[slot])
                    assert torch.equal(parts["down_bias"], weights.down_bias_SH[slot])


def test_every_listed_family_is_tried_here_with_and_without_everything_on():
    tried = [FAMILIES[name]() for name in OF_LISTED_FAMILIES]
    kinds = [f"{type(each).__name__.removesuffix('Config')}ForCausalLM" for each in tried]
    for family in LISTED:
        for architecture in family.architectures:
            assert architecture in SUPPORTED_ARCHITECTURES
            assert kinds.count(architecture) >= 2, architecture
