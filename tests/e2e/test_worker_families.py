"""Real workers serve every kind of family: latent KV, transposed experts with biases, other names.

What `test_worker_epochs.py` shows for one family is not shown again; here a model of each kind is
loaded from its own checkpoint into pages, spread over two devices, spread anew over three while it
talks, and says what a single rank says.
"""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, GptOssConfig, MixtralConfig
from worker_fleet import EXPERTS, LAYERS, Fleet, spread
from worker_site import DEADLINE_S, DEVICES

from moectl.agents.engine.local import open_engine, open_forward
from moectl.agents.engine.request import Request
from moectl.agents.engine.schedule import Limits
from moectl.core.plan import TransitionKind
from moectl.memory.layout import ExpertLayout, experts_name

COMMON = {
    "vocab_size": 160,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
KINDS = {
    "mixtral": lambda: MixtralConfig(
        **COMMON, num_key_value_heads=2, num_local_experts=EXPERTS, sliding_window=12
    ),
    "gpt-oss": lambda: GptOssConfig(
        **COMMON, num_key_value_heads=2, num_local_experts=EXPERTS, head_dim=16, sliding_window=12
    ),
    "deepseek3": lambda: DeepseekV3Config(
        **COMMON,
        num_key_value_heads=4,
        n_routed_experts=EXPERTS,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=0,
        kv_lora_rank=32,
        q_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=24,
        n_group=2,
        topk_group=1,
    ),
}


# A reproducible model keeps the experts of a bfloat16 checkpoint in bfloat16.
SERVED = [(kind, "standard") for kind in KINDS]
SERVED += [("mixtral", "reproducible"), ("gpt-oss", "reproducible")]


@pytest.fixture(params=SERVED, ids="-".join)
def served(request, tmp_path):
    """(folder of a checkpoint, precision)"""
    kind, precision = request.param
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(KINDS[kind]())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if precision == "reproducible":
        model.bfloat16()
    model.save_pretrained(tmp_path)
    return tmp_path, precision


def expected(checkpoint, streams):
    """What one rank with every expert says."""
    torch.set_num_threads(1)
    forward, moe = open_forward(checkpoint)
    engine = open_engine(forward, Limits(max_context=256), 64)
    for stream in streams:
        engine.submit(Request(stream.name, stream.prompt, stream.count))
    told = {stream.name: [] for stream in streams}
    while engine.has_work:
        for token in engine.run(engine.plan(), moe).tokens:
            told[token.request_id].append(token.token)
    return told


def held_dtypes(site, epoch):
    """In which dtypes the experts of the devices of node n1 are held."""
    with site.hmm("n1") as hmm:
        plain = [hmm.get_layout(experts_name("tiny", name, epoch)) for name in ("d0", "d1")]
    return {ExpertLayout.from_json(each).shape.dtype for each in plain}


def test_a_family_is_served_from_pages_and_spread_anew_while_it_talks(site, served):
    checkpoint, precision = served
    fleet = Fleet(site, checkpoint, precision=precision)
    try:
        new, steps = spread(None, DEVICES[:2], 1)
        record, _ = fleet.change(TransitionKind.CREATE, new, steps)
        fleet.retire(record)
        generator = torch.Generator().manual_seed(1)
        for n in range(4):
            prompt = tuple(torch.randint(3, 160, (5 + 9 * n,), generator=generator).tolist())
            fleet.start_stream(prompt, 60, DEVICES[n % 2])
        new, steps = spread(fleet.placement, DEVICES[:3], 2)
        record, _ = fleet.change(TransitionKind.SCALE, new, steps)
        fleet.retire(record)
        is_half = precision == "reproducible"
        assert held_dtypes(site, 2) == {"bfloat16" if is_half else "float32"}
        streams = list(fleet.streams.values())
        until = time.monotonic() + DEADLINE_S
        for stream in streams:
            assert stream.ended.wait(until - time.monotonic()), f"{stream.name} did not end"
            assert (stream.reason, stream.replays) == ("length", 0)
        told = expected(checkpoint, streams)
        assert {stream.name: stream.tokens for stream in streams} == told
        assert len({token for tokens in told.values() for token in tokens}) > 10
    finally:
        fleet.close()
