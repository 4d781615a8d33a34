"""Train the demo model: a Qwen3-MoE language model on Python's standard library.

One deterministic pass from a seed: `moectl model train --seed S --steps N OUT`. The loss curve is
written beside the weights as `training.json`, so that the docs quote the run and not a memory of
it. Resumable: a checkpoint is kept every `CHECKPOINT_STEPS` steps until the run is complete.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import corpus
from .tokenizer import save_tokenizer, train_tokenizer

CHECKPOINT_STEPS = 200
REPORT_STEPS = 20
EVAL_SHARE = 0.02  # the last documents, never trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What a training run depends on; saved with the result."""

    seed: int = 7
    steps: int = 3000
    batch_sequences: int = 16
    sequence_tokens: int = 256
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    vocab_size: int = 2048
    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 16
    experts_per_token: int = 2
    expert_hidden_size: int = 64
    context_tokens: int = 4096
    router_aux_weight: float = 0.01


def model_config(options: TrainOptions) -> Any:
    """The `Qwen3MoeConfig` of these options: every layer sparse, embeddings tied."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.expert_hidden_size * 4,
        moe_intermediate_size=options.expert_hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        head_dim=options.head_dim,
        num_experts=options.experts,
        num_experts_per_tok=options.experts_per_token,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=options.context_tokens,
        tie_word_embeddings=True,
        router_aux_loss_coef=options.router_aux_weight,
        output_router_logits=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


def encode_documents(tokenizer: Any, documents: list[str]) -> Any:
    """All documents as one tensor of token ids [N], an end-of-text mark after each."""
    import torch

    ids: list[int] = []
    for start in range(0, len(documents), 256):
        for encoding in tokenizer.encode_batch(documents[start : start + 256]):
            ids.extend(encoding.ids)
            ids.append(0)
    return torch.tensor(ids, dtype=torch.int32)


def batch_at(step: int, tokens: Any, options: TrainOptions) -> Any:
    """The batch of a step, ids [B, S]: windows at random places, drawn from (seed, step) alone."""
    import torch

    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    last = len(tokens) - options.sequence_tokens - 1
    starts = torch.randint(0, last, (options.batch_sequences,), generator=generator)
    rows = [tokens[s : s + options.sequence_tokens] for s in starts.tolist()]
    return torch.stack(rows).long()


def evaluate(model: Any, tokens: Any, options: TrainOptions) -> float:
    """Mean loss in nats per token on text that was never trained on."""
    import torch

    losses = []
    with torch.no_grad():
        for start in range(0, min(len(tokens) - options.sequence_tokens, 16_384), 4096):
            window = tokens[start : start + 4096].long()
            rows = window[: len(window) // options.sequence_tokens * options.sequence_tokens]
            ids = rows.view(-1, options.sequence_tokens)
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    return sum(losses) / len(losses)


def train(
    out: Path, options: TrainOptions, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train and save a model into the folder `out`; returns what `training.json` holds.

    `report` is called with {"step", "steps", "loss", "tokens_per_s"} every few steps.
    """
    import torch
    from transformers import Qwen3MoeForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    documents = corpus.read_documents()
    held_out = max(1, int(len(documents) * EVAL_SHARE))
    tokenizer = train_tokenizer(documents[:-held_out], options.vocab_size)
    train_N = encode_documents(tokenizer, documents[:-held_out])
    held_N = encode_documents(tokenizer, documents[-held_out:])
    torch.manual_seed(options.seed)
    model = Qwen3MoeForCausalLM(model_config(options))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    run = _Run(options, model, optimizer, out / "training.partial.safetensors")
    curve = _optimise(run, train_N, held_N, report)
    record = {
        "options": asdict(options),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(train_N),
        "documents": len(documents),
        "curve": curve,
    }
    _save(model, tokenizer, out, options, record)
    return record


@dataclass(slots=True)
class _Run:
    """What one training run carries from step to step."""

    options: TrainOptions
    model: Any
    optimizer: Any
    state_path: Path


def _optimise(
    run: _Run, train_N: Any, held_N: Any, report: Callable[[dict[str, Any]], None]
) -> list[dict[str, float]]:
    options = run.options
    first, curve = _resume(run.model, run.optimizer, run.state_path)
    began = time.monotonic()
    for step in range(first, options.steps):
        loss = _take_step(run, step, batch_at(step, train_N, options))
        if (step + 1) % REPORT_STEPS == 0:
            done = (step + 1 - first) * options.batch_sequences * options.sequence_tokens
            rate = done / (time.monotonic() - began)
            report({"step": step + 1, "steps": options.steps, "loss": loss, "tokens_per_s": rate})
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == options.steps:
            held = evaluate(run.model, held_N, options)
            curve.append({"step": step + 1, "train_loss": loss, "held_out_loss": held})
            _checkpoint(run.model, run.optimizer, run.state_path, step + 1, curve)
    run.state_path.unlink(missing_ok=True)
    return curve


def _take_step(run: _Run, step: int, ids_BS: Any) -> float:
    """One forward, backward and update; returns the loss in nats per token."""
    import torch

    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate_at(step, run.options)
    # With router logits the library adds its balance loss, pooled over layers: weak enough that
    # experts specialise, which is what a router of a large model looks like too.
    loss = run.model(input_ids=ids_BS, labels=ids_BS, output_router_logits=True).loss
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    return float(loss.item())


def _checkpoint(
    model: Any, optimizer: Any, path: Path, step: int, curve: list[dict[str, float]]
) -> None:
    """Weights and AdamW moments as safetensors: no pickle on disk."""
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors[f"weight.{name}"] = parameter.detach().clone()
        tensors[f"first.{name}"] = state["exp_avg"].clone()
        tensors[f"second.{name}"] = state["exp_avg_sq"].clone()
    partial = path.with_suffix(".new")
    save_file(tensors, partial, metadata={"step": str(step), "curve": json.dumps(curve)})
    partial.replace(path)


def _resume(model: Any, optimizer: Any, path: Path) -> tuple[int, list[dict[str, float]]]:
    import torch
    from safetensors import safe_open

    if not path.exists():
        return 0, []
    with safe_open(path, framework="pt") as handle:
        meta = handle.metadata()
        for name, parameter in model.named_parameters():
            parameter.data.copy_(handle.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(meta["step"])),
                "exp_avg": handle.get_tensor(f"first.{name}"),
                "exp_avg_sq": handle.get_tensor(f"second.{name}"),
            }
    return int(meta["step"]), json.loads(meta["curve"])


def _save(
    model: Any, tokenizer: Any, out: Path, options: TrainOptions, record: dict[str, Any]
) -> None:
    import torch

    model.to(torch.bfloat16).save_pretrained(out)
    save_tokenizer(tokenizer, out, options.context_tokens)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
