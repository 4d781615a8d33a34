"""A rank's engine step by step: failures, cancellation, idle steps, growing and shrinking KV."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    JambaConfig,
    Lfm2MoeConfig,
    LlamaConfig,
    Qwen3MoeConfig,
)

from moectl.agents.engine import local
from moectl.agents.engine.engine import EngineRefused, Limits
from moectl.agents.engine.model import (
    bind_shared,
    build_template,
    expert_tensor_shapes,
    model_shape,
    shared_tensor_specs,
)
from moectl.agents.engine.request import Request, Sampling
from moectl.core.errors import CheckpointError, EngineError, InvariantError
from moectl.kernels import dense, native

LIMITS = Limits(max_batch_tokens=32, prefill_chunk=8, max_context=128, block_tokens=4)
PROMPTS = [(5, 6, 7), tuple(range(10, 40)), (9,)]


def config(**changes):
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [1],
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Qwen3MoeConfig(**(sizes | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("tiny")
    AutoModelForCausalLM.from_config(config()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def parts(folder):
    return local.open_forward(folder)


@pytest.fixture
def engine(parts):
    return local.open_engine(parts[0], LIMITS, 64)


class Breaks:
    """A MoeRunner that loses a peer at chosen calls, as an exchange does."""

    def __init__(self, moe, at):
        self.moe, self.at, self.calls = moe, set(at), 0

    def run(self, layer, x_NH, ids_NK, weights_NK):
        self.calls += 1
        if self.calls in self.at:
            raise EngineError("a peer is gone")
        return self.moe.run(layer, x_NH, ids_NK, weights_NK)


class Counts:
    """A MoeRunner that notes its calls."""

    def __init__(self, moe):
        self.moe, self.seen = moe, []

    def run(self, layer, x_NH, ids_NK, weights_NK):
        self.seen.append((layer, x_NH.shape[0]))
        assert x_NH.is_contiguous() and (ids_NK < 6).all()
        return self.moe.run(layer, x_NH, ids_NK, weights_NK)


def finish(engine, moe):
    tokens, dones = {}, {}
    while engine.has_work:
        plan = engine.plan()
        if plan is None:
            dones |= {done.request_id: done.reason for done in engine.drain_dones()}
            continue
        try:
            result = engine.run(plan, moe)
        except EngineError:
            continue
        for token in result.tokens:
            tokens.setdefault(token.request_id, []).append(token.token)
        dones |= {done.request_id: done.reason for done in result.dones}
    return tokens, dones


def submit_all(engine):
    for i, prompt in enumerate(PROMPTS):
        engine.submit(Request(str(i), prompt, 15, Sampling(0.9, seed=i) if i == 1 else Sampling()))


def test_a_step_that_fails_anywhere_is_run_again_without_a_trace(parts, engine):
    submit_all(engine)
    expected = finish(engine, parts[1])
    broken = local.open_engine(parts[0], LIMITS, 64)
    submit_all(broken)
    runner = Breaks(parts[1], at=(1, 4, 6, 7, 15, 20, 21))
    assert finish(broken, runner) == expected
    assert runner.calls == 2 * broken.stats().steps + 9  # 7 failed calls, 2 after a good one


def test_experts_are_called_once_a_layer_with_real_rows_only(parts, engine):
    engine.submit(Request("a", (5,), 3))
    counts = Counts(parts[1])
    engine.run(engine.plan(), counts)
    engine.run_idle(counts)
    assert counts.seen == [(0, 1), (1, 1), (0, 0), (1, 0)]


def test_cancelling_ends_a_request_within_a_step(parts, engine):
    submit_all(engine)
    engine.run(engine.plan(), parts[1])
    assert engine.cancel("1") and not engine.cancel("unknown")
    tokens, dones = finish(engine, parts[1])
    assert dones == {"0": "length", "1": "cancelled", "2": "length"}
    assert "1" not in tokens and engine.stats().kv_blocks_used == 0


def test_a_leaving_rank_hands_every_request_back_as_moved(parts, engine):
    submit_all(engine)
    engine.run(engine.plan(), parts[1])
    for request_id in engine.scheduler.sequences:
        engine.cancel(request_id, "moved")
    assert {done.reason for done in engine.drain_dones()} == {"moved"}
    assert not engine.has_work


def test_kv_grows_and_shrinks_under_running_requests(parts):
    forward, moe = parts
    roomy = local.open_engine(forward, LIMITS, 64)
    submit_all(roomy)
    expected = finish(roomy, moe)
    engine = local.open_engine(forward, LIMITS, 64)
    engine.shrink_kv(44)
    submit_all(engine)
    for _ in range(3):
        engine.run(engine.plan(), moe)
    engine.grow_kv(10)
    engine.run(engine.plan(), moe)
    engine.shrink_kv(17)
    assert engine.stats().kv_blocks_total == 13
    assert finish(engine, moe)[1] == expected[1]
    assert engine.stats().preemptions > 0


def test_tokens_outside_the_vocabulary_are_refused(engine):
    for prompt, already in (((64,), ()), ((-1,), ()), ((1,), (64,))):
        with pytest.raises(EngineRefused, match="vocabulary"):
            engine.submit(Request("a", prompt, 5, already=already))


def test_kv_of_another_block_size_is_our_bug(parts, engine):
    from moectl.agents.engine.engine import Engine

    with pytest.raises(InvariantError):
        Engine(parts[0], engine.kv, Limits(block_tokens=8))


def test_the_shape_names_moe_layers_and_one_experts_tensors(folder):
    template = build_template(folder)
    shape = model_shape(template)
    assert shape.moe_layers == (0, 2) and shape.layers == 3 and shape.experts == 6
    assert shape.kv_block_shape(4) == (3, 2, 4, 2, 8)
    assert expert_tensor_shapes(template) == {"gate_up": (32, 32), "down": (32, 16)}


def test_shared_tensors_are_everything_but_experts(folder):
    template = build_template(folder)
    specs = shared_tensor_specs(template)
    assert not any("experts" in name for name in specs)
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert {name: tuple(state[name].shape) for name in specs} == specs
    assert {name for name in state if "experts" not in name} == set(specs)


def test_tied_weights_are_bound_once_and_shared(tmp_path):
    tied = config(tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(tied).save_pretrained(tmp_path)
    template = build_template(tmp_path)
    specs = shared_tensor_specs(template)
    assert "lm_head.weight" not in specs and "model.embed_tokens.weight" in specs
    bind_shared(template, {name: torch.zeros(shape) for name, shape in specs.items()})
    assert template.lm_head.weight.data_ptr() == template.model.embed_tokens.weight.data_ptr()


def test_binding_uses_the_given_memory_and_can_be_repeated(folder):
    template = build_template(folder)
    for _ in range(2):
        tensors = {
            name: torch.zeros(shape) for name, shape in shared_tensor_specs(template).items()
        }
        bind_shared(template, tensors)
        for name, parameter in template.named_parameters():
            assert parameter.data_ptr() == tensors[name].data_ptr()


@pytest.mark.parametrize("wrong", [None, torch.zeros(3)])
def test_a_missing_or_misshapen_tensor_is_named(folder, wrong):
    template = build_template(folder)
    tensors = {name: torch.zeros(shape) for name, shape in shared_tensor_specs(template).items()}
    tensors["model.norm.weight"] = wrong
    with pytest.raises(EngineError, match=r"model\.norm\.weight"):
        bind_shared(template, {name: t for name, t in tensors.items() if t is not None})


def test_models_that_cannot_run_are_refused_with_the_reason(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        build_template(tmp_path)
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    LlamaConfig(**small, **heads).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no routed experts"):
        build_template(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        build_template(tmp_path)


REFUSED = {
    "dynamic": "longest row",
    "chunked": "chunked_attention|attention_chunk",
    "mamba": "keep another state|routed experts|cannot be followed",
    "conv": "keep another state",
}


@pytest.mark.parametrize("trait", REFUSED)
def test_what_the_engine_would_get_wrong_is_refused_with_the_reason(tmp_path, trait):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    configs = {
        "dynamic": lambda: config(rope_parameters=rope),
        "chunked": lambda: config(attention_chunk_size=8),
        "mamba": lambda: JambaConfig(
            hidden_size=32,
            num_hidden_layers=4,
            vocab_size=64,
            attn_layer_period=2,
            attn_layer_offset=1,
        ),
        "conv": lambda: Lfm2MoeConfig(
            hidden_size=32,
            num_hidden_layers=4,
            vocab_size=64,
            num_experts=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
        ),
    }
    configs[trait]().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=REFUSED[trait]):
        build_template(tmp_path)


def test_a_weight_whose_rows_are_not_stable_here_is_named(parts, monkeypatch):
    monkeypatch.setattr(dense, "gemm_rows_keep_their_bits", lambda depth, outputs: False)
    monkeypatch.setattr(native, "extension", None)
    found = parts[0].unstable_weights()
    attention = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"]
    routers = [f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 2)]
    assert {*attention, *routers, "lm_head.weight"} < {*found}
    assert "model.embed_tokens.weight" not in found  # looked up, never multiplied


@pytest.mark.skipif(native.extension is None, reason="the compiled kernels are not built")
def test_the_gemm_library_is_not_asked_about_what_our_kernel_multiplies(parts, monkeypatch):
    monkeypatch.setattr(dense, "gemm_rows_keep_their_bits", lambda depth, outputs: False)
    assert parts[0].unstable_weights() == []


def test_an_expert_that_is_not_here_is_named(parts):
    import numpy as np

    from moectl.agents.engine.moe import ExpertSlots

    slots = parts[1].slots
    some = ExpertSlots(slots.weights, {(0, 1): slots.slot_of[0, 1]}, 2, 6)
    row, expert = np.array([0, 0]), np.array([1, 4])
    with pytest.raises(EngineError, match=r"layer 0: experts \[4\]"):
        some.compute(0, torch.zeros(1, 32), row, expert)


@pytest.mark.parametrize("requests", [1, 2, 40])
def test_other_limits_between_steps_change_no_token(parts, engine, requests) -> None:
    expected = local.open_engine(parts[0], LIMITS, 64)
    for each in (expected, engine):
        for number, prompt in enumerate(PROMPTS * 2):
            each.submit(Request(f"r{number}", prompt, 9))
    alone = finish(expected, parts[1])
    early, chunk = [], 3
    for _ in range(6):
        early += engine.run(engine.plan(), parts[1]).tokens
        limits = Limits(
            max_batch_tokens=8 + chunk, prefill_chunk=chunk, max_context=128, block_tokens=4,
            max_requests=requests, prefix_cache=bool(chunk % 2),
        )  # fmt: skip
        engine.take_settings(limits, 1)
        assert engine.scheduler.running_count <= limits.max_running
        chunk += 3
    tokens, _ = finish(engine, parts[1])
    seen = {}
    for token in early:
        seen.setdefault(token.request_id, []).append(token.token)
    assert {name: seen.get(name, []) + tokens.get(name, []) for name in alone[0]} == alone[0]
    assert engine.stats().kv_blocks_used == 0


def test_limits_that_lay_memory_out_in_another_way_are_a_bug(engine) -> None:
    with pytest.raises(InvariantError, match="block and context"):
        engine.take_settings(replace(LIMITS, block_tokens=8), 1)
