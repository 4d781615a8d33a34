"""Where does a trace with token ids and hidden states come from? From the demo model, here and now.

The public traces carry no token ids, which the routing-path predictor reads, and no hidden states,
which a next-layer gate reads. So the demo model is run over pieces of Python's own library, each
piece one request, one forward each: its attention is causal, so every token is routed as it would
be in decoding. Small, repeatable, and labelled as a demo model's routes wherever it is shown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...memory.cache.trace import DECODE, Floats, RoutingTrace, RowCounts
from ..train.corpus import read_documents


@dataclass(frozen=True, slots=True)
class Recording:
    """A trace with what only the model itself knows."""

    trace: RoutingTrace
    hidden: Floats  # [tokens, layers, hidden]: what each layer's gate saw
    gates: Floats  # [layers, experts, hidden]


def record_routes(folder: Path, requests: int, tokens: int, seed: int) -> Recording:
    """Run the model of a folder over `requests` pieces of `tokens` tokens each."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    gates = [layer.mlp.gate for layer in model.model.layers]
    seen: list[list[Any]] = [[] for _ in gates]
    hooks = [
        gate.register_forward_pre_hook(
            lambda _, inputs, at=at: seen[at].append(inputs[0].reshape(-1, inputs[0].shape[-1]))
        )
        for at, gate in enumerate(gates)
    ]
    pieces = _pieces(tokenizer, requests, tokens, seed)
    with torch.inference_mode():
        for piece in pieces:
            model(torch.from_numpy(piece.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    hidden = torch.stack([torch.cat(parts) for parts in seen], dim=1)
    weights = torch.stack([gate.weight.detach().float() for gate in gates])
    chances = torch.einsum("tlh,leh->tle", hidden, weights).softmax(dim=-1)
    top, experts = chances.topk(model.config.num_experts_per_tok, dim=-1)
    trace = RoutingTrace(
        experts=experts.numpy().astype(np.int32),
        experts_per_layer=int(weights.shape[1]),
        layers=tuple(range(len(gates))),
        requests=np.repeat(np.arange(requests, dtype=np.int32), tokens),
        positions=np.tile(np.arange(tokens, dtype=np.int32), requests),
        phases=np.full(requests * tokens, DECODE, np.uint8),
        weights=top.numpy().astype(np.float32),
        token_ids=np.concatenate(pieces).astype(np.int32),
        model=folder.name,
        source="demo model on Python's library",
        counts=RowCounts(read=experts.shape[0] * len(gates), kept=experts.shape[0] * len(gates)),
    )
    return Recording(trace, hidden.numpy(), weights.numpy())


def _pieces(tokenizer: Any, requests: int, tokens: int, seed: int) -> list[Any]:
    """Token ids of pieces of files, one file each, drawn by the seed."""
    documents = [text for text in read_documents() if len(text) > 12 * tokens]
    random = np.random.default_rng(seed)
    chosen = random.choice(len(documents), size=requests, replace=False)
    pieces = []
    for index in chosen.tolist():
        text = documents[index]
        start = int(random.integers(0, len(text) - 12 * tokens + 1))
        pieces.append(np.array(tokenizer.encode(text[start : start + 12 * tokens])[:tokens]))
    return pieces
