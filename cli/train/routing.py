"""How a model routes: does it use its experts unevenly, and can the next choice be foreseen.

Run on text that the demo model never saw. The figures decide whether the model is worth looking at:
a router that picks at random gives a flat heat map and nothing to predict.

Legend: N tokens, E experts, K experts per token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import corpus
from .loop import EVAL_SHARE

WINDOW_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """One layer's routing on held-out text; shares are of routed pairs."""

    layer: int
    experts_used: int  # with more than 5 % of the mean load
    hottest_over_mean: float
    named_by_popularity: float  # share of choices among the K most popular experts
    named_by_layer_before: float | None  # ... among the K likeliest given the layer before


def measure_routing(folder: Path, tokens: int) -> list[LayerRouting]:
    """Route `tokens` tokens of held-out text; the first half fits, the second scores."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = corpus.read_documents()
    held_out = documents[-max(1, int(len(documents) * EVAL_SHARE)) :]
    ids = tokenizer("".join(held_out), truncation=False)["input_ids"][:tokens]
    ids_BS = torch.tensor(ids[: len(ids) // WINDOW_TOKENS * WINDOW_TOKENS]).view(-1, WINDOW_TOKENS)
    with torch.inference_mode():
        logits = model(input_ids=ids_BS, output_router_logits=True).router_logits
    experts_per_token = model.config.num_experts_per_tok
    chosen = [
        layer_NE.topk(experts_per_token, dim=-1).indices.sort(-1).values for layer_NE in logits
    ]
    count = logits[0].shape[-1]
    return [_layer(index, chosen, count) for index in range(len(chosen))]


def _layer(index: int, chosen: list[Any], experts: int) -> LayerRouting:
    import torch

    top_NK = chosen[index]
    half, top_k = len(top_NK) // 2, top_NK.shape[1]
    load_E = torch.bincount(top_NK.flatten(), minlength=experts).float()
    popular_K = torch.bincount(top_NK[:half].flatten(), minlength=experts).topk(top_k).indices
    before = None
    if index:
        before = _share_named(_guess_from(chosen[index - 1], top_NK, half, experts), top_NK[half:])
    return LayerRouting(
        layer=index,
        experts_used=int((load_E > 0.05 * load_E.mean()).sum()),
        hottest_over_mean=float(load_E.max() / load_E.mean()),
        named_by_popularity=_share_named(popular_K.expand(len(top_NK) - half, -1), top_NK[half:]),
        named_by_layer_before=before,
    )


def _guess_from(before_NK: Any, top_NK: Any, half: int, experts: int) -> Any:
    """For tokens after `half`: the K experts most often seen with these K one layer before."""
    import torch

    place_K = experts ** torch.arange(before_NK.shape[1] - 1, -1, -1)
    key_N = (before_NK * place_K).sum(-1)
    used_NE = torch.zeros(len(top_NK), experts).scatter_(1, top_NK, 1.0)
    seen = torch.zeros(int(key_N.max()) + 1, experts).index_add_(0, key_N[:half], used_NE[:half])
    return seen[key_N[half:]].topk(top_NK.shape[1], dim=-1).indices


def _share_named(guess_NK: Any, top_NK: Any) -> float:
    return float((guess_NK[:, :, None] == top_NK[:, None, :]).any(1).float().mean())
