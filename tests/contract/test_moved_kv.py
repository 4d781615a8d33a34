"""KV of every family moves over a socket between two engines and the tokens go on as if it had not.

Keys and values, latents, sliding windows: blocks are bytes, and all of them are copied whole.
"""

import socket
import threading
from contextlib import closing

import pytest
import torch
from moe_families import FAMILIES
from transformers import AutoModelForCausalLM

from moectl.agents.engine import local
from moectl.agents.engine.engine import Limits
from moectl.agents.engine.move_wire import MoveSocket
from moectl.agents.engine.request import Request, Sampling

LIMITS = Limits(max_batch_tokens=32, prefill_chunk=16, block_tokens=8, max_context=256)
BLOCKS, NEW_TOKENS = 40, 16
CHOSEN = sorted(
    {"qwen3", "qwen3-tied-window", *(f for f in FAMILIES if f.startswith(("deep", "glm")))}
)


def step(engine, moe, out):
    plan = engine.plan()
    if plan is None:
        engine.drain_dones()
        return
    for token in engine.run(plan, moe).tokens:
        assert token.index == len(out[token.request_id])
        out[token.request_id].append(token.token)


def copy(source, blocks, target, places):
    """Blocks of one pool into another one, over a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        sender = MoveSocket.connect(address, "127.0.0.1")
        receiver = MoveSocket(listener.accept()[0])
    with closing(sender), closing(receiver):
        thread = threading.Thread(target=sender.send_blocks, args=(source, blocks))
        thread.start()
        receiver.receive_blocks(target, places)
        thread.join()


def requests():
    prompts = [tuple(range(3, 3 + length)) for length in (5, 41, 60)]
    sampling = [Sampling(), Sampling(temperature=0.9, seed=5, frequency_penalty=0.4), Sampling()]
    pairs = zip(prompts, sampling, strict=True)
    return [Request(str(i), p, NEW_TOKENS, s) for i, (p, s) in enumerate(pairs)]


def alone(forward, moe):
    engine, out = local.open_engine(forward, LIMITS, BLOCKS), {r.id: [] for r in requests()}
    for request in requests():
        engine.submit(request)
    while engine.has_work:
        step(engine, moe, out)
    return out


@pytest.mark.parametrize("family", CHOSEN)
def test_a_family_goes_on_elsewhere_as_if_it_had_stayed(family, tmp_path):
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(FAMILIES[family]()).save_pretrained(tmp_path)
    forward, moe = local.open_forward(tmp_path)
    expected = alone(forward, moe)
    here, there = (local.open_engine(forward, LIMITS, BLOCKS) for _ in range(2))
    out = {request.id: [] for request in requests()}
    for request in requests():
        here.submit(request)
    for _ in range(6):  # some decode, the longest prompt is still read
        step(here, moe, out)
    rows = 0
    for now in here.scheduler.standing():
        if now.computed:
            assert there.incoming.hold(now.id, now.blocks_wanted(LIMITS.block_tokens))
            count = -(-now.computed // LIMITS.block_tokens)
            copy(here.kv, now.blocks[:count], there.kv, there.incoming.blocks_of(now.id)[:count])
        there.adopt(here.scheduler.continued(now.id), now.computed)
        rows += now.tokens_max - 1 - now.computed  # each position once, but the last token's
    while there.has_work:
        step(there, moe, out)
    assert out == expected
    assert there.stats().rows == rows
    assert (there.incoming.count, there.stats().kv_blocks_used) == (0, 0)
