"""The tiny model of the tests with real workers, and what it says when nothing ever happens."""

import torch
from worker_fleet import EXPERTS, LAYERS

from moectl.agents.engine.local import open_engine, open_forward
from moectl.agents.engine.request import Request
from moectl.agents.engine.schedule import Limits
from moectl.agents.engine.submit import sampling_of


def write_checkpoint(folder):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(7)
    config = Qwen3MoeConfig(
        vocab_size=160, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=EXPERTS, num_experts_per_tok=3,
        moe_intermediate_size=32, intermediate_size=32, max_position_embeddings=1024,
        tie_word_embeddings=True, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


class Alone:
    """One rank with every expert; called with a prompt it gives the tokens that follow."""

    def __init__(self, checkpoint):
        torch.set_num_threads(1)
        self._forward, self._moe = open_forward(checkpoint)
        self._known = {}

    def __call__(self, prompt, count, sampling=None):
        key = (prompt, count, str(sampling))
        if key not in self._known:
            engine = open_engine(self._forward, Limits(max_context=1024), 64)
            engine.submit(Request("a", prompt, count, sampling_of(sampling or {})))
            out = []
            while engine.has_work:
                out += [token.token for token in engine.run(engine.plan(), self._moe).tokens]
            self._known[key] = out
        return self._known[key]
