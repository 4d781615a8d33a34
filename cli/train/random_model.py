"""A Qwen3-MoE model with random weights, of any size, written straight to safetensors shards.

Every tensor is drawn from (seed, its number) alone and written piece by piece: neither the model
nor a single large tensor is ever held in memory, and the same seed gives the same files. Norm
weights are ones; all others are normal with the deviation that the family starts training with.
bfloat16.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...core.errors import CheckpointError, RefusedError, UsageError

DEVIATION = 0.02  # Qwen3-MoE's initializer_range
ELEMENT_BYTES = 2  # bfloat16
PIECE_ELEMENTS = 1 << 20  # 4 MiB of float32 at a time
EMBEDDING = "model.embed_tokens.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """The shape of a model and the seed of its weights; the vocabulary is the tokenizer's."""

    layers: int = 4
    hidden: int = 192
    experts: int = 16
    experts_per_token: int = 2
    expert_hidden: int = 64
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 2048
    context_tokens: int = 4096
    seed: int = 7
    mute: frozenset[int] = frozenset()  # tokens with a row of zeros: greedy never chooses them

    def __post_init__(self) -> None:
        if self.experts_per_token > self.experts:
            raise UsageError(
                f"{self.experts_per_token} experts a token, but a layer has only {self.experts}"
            )
        if self.heads % self.kv_heads:
            raise UsageError(
                f"{self.heads} heads cannot share {self.kv_heads} heads of keys evenly"
            )
        if self.head_dim % 2:
            raise UsageError(f"head width {self.head_dim} is odd: rotary positions need pairs")

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(tensor.elements for tensor in tensors_of(self))


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to write; `number` seeds its values."""

    number: int
    name: str
    shape: tuple[int, ...]
    is_norm: bool

    @property
    def elements(self) -> int:
        """Product of the shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.elements * ELEMENT_BYTES


def tensors_of(model: RandomModel) -> list[Tensor]:
    """Every tensor of a model under the family's names, embeddings tied."""
    shapes: list[tuple[str, tuple[int, ...]]] = [(EMBEDDING, (model.vocab, model.hidden))]
    for layer in range(model.layers):
        shapes += _layer_shapes(model, f"model.layers.{layer}.")
    shapes.append(("model.norm.weight", (model.hidden,)))
    return [
        Tensor(number, name, shape, "norm" in name) for number, (name, shape) in enumerate(shapes)
    ]


def _layer_shapes(model: RandomModel, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield f"{prefix}input_layernorm.weight", (model.hidden,)
    yield f"{prefix}self_attn.q_proj.weight", (queries, model.hidden)
    yield f"{prefix}self_attn.k_proj.weight", (keys, model.hidden)
    yield f"{prefix}self_attn.v_proj.weight", (keys, model.hidden)
    yield f"{prefix}self_attn.o_proj.weight", (model.hidden, queries)
    yield f"{prefix}self_attn.q_norm.weight", (model.head_dim,)
    yield f"{prefix}self_attn.k_norm.weight", (model.head_dim,)
    yield f"{prefix}post_attention_layernorm.weight", (model.hidden,)
    yield f"{prefix}mlp.gate.weight", (model.experts, model.hidden)
    for expert in range(model.experts):
        inner = f"{prefix}mlp.experts.{expert}."
        yield f"{inner}gate_proj.weight", (model.expert_hidden, model.hidden)
        yield f"{inner}up_proj.weight", (model.expert_hidden, model.hidden)
        yield f"{inner}down_proj.weight", (model.hidden, model.expert_hidden)


def write_random_model(
    out: Path,
    model: RandomModel,
    *,
    shard_bytes: int,
    report: Callable[[int, int], None],
    tokenizer_from: Path | None = None,
) -> int:
    """Write the model and return its bytes; `report(done, total)` is called as it goes on.

    Raises:  RefusedError when `out` holds a model already, or the disk is too small.
    """
    source = tokenizer_from or _demo_folder()
    tensors = tensors_of(model)
    total = sum(tensor.bytes for tensor in tensors)
    _check_target(out, total)
    out.mkdir(parents=True, exist_ok=True)
    shards = shards_of(tensors, shard_bytes)
    done = 0
    placed: dict[str, str] = {}
    for index, shard in enumerate(shards):
        name = _shard_name(index, len(shards))
        done = _write_shard(out / name, shard, model, lambda d: report(d, total), done)
        placed.update({tensor.name: name for tensor in shard})
    if len(shards) > 1:
        table = {"metadata": {"total_size": total}, "weight_map": placed}
        _write_json(out / "model.safetensors.index.json", table)
    for file in TOKENIZER_FILES:
        shutil.copyfile(source / file, out / file)
    _write_json(out / "config.json", config_of(model))  # last: a folder with it is complete
    return total


def invisible_tokens(folder: Path) -> frozenset[int]:
    """Tokens of a folder's tokenizer that alone show no whole text: pieces of characters, marks.

    A model that never says them gives its readers one piece of text a token.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    count = tokenizer.get_vocab_size()
    shown = [tokenizer.decode([token], skip_special_tokens=True) for token in range(count)]
    return frozenset(token for token, text in enumerate(shown) if not text or "\ufffd" in text)


def shards_of(tensors: list[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    """Tensors in order, cut before a file would grow beyond `shard_bytes`."""
    shards: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.bytes > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.bytes
    return shards


def config_of(model: RandomModel) -> dict[str, Any]:
    """`config.json` as the family's loader reads it."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "intermediate_size": model.expert_hidden * 4,
        "moe_intermediate_size": model.expert_hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "num_experts": model.experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "max_position_embeddings": model.context_tokens,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": DEVIATION,
    }


def _check_target(out: Path, total: int) -> None:
    if (out / "config.json").exists():
        raise RefusedError(f"{out} holds a model already", next_step="name another folder")
    parent = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < total + (64 << 20):
        raise RefusedError(
            f"{out}: the model needs {total:,} bytes, the disk has {free:,} free",
            next_step="make the model smaller or name a folder on a larger disk",
        )


def _demo_folder() -> Path:
    folder = Path(__file__).resolve().parents[2] / "clusters" / "models" / "demo"
    if not (folder / "tokenizer.json").exists():
        raise CheckpointError(
            f"{folder}: the demo model, whose tokenizer is used, is missing",
            next_step=f"make it with `moectl model train {folder}`",
        )
    return folder


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"


def _write_shard(
    path: Path,
    shard: list[Tensor],
    model: RandomModel,
    report: Callable[[int], None],
    done: int,
) -> int:
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(shard_header(shard))
            for tensor in shard:
                mute = model.mute if tensor.name == EMBEDDING else frozenset()
                _write_tensor(file, tensor, model.seed, mute)
                done += tensor.bytes
                report(done)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return done


def shard_header(shard: list[Tensor]) -> bytes:
    """Length and JSON of a safetensors file, padded to 8 bytes so that the data is aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        entries[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_tensor(file: BinaryIO, tensor: Tensor, seed: int, mute: frozenset[int]) -> None:
    if tensor.is_norm:
        file.write(to_bfloat16(np.ones(tensor.elements, dtype=np.float32)).tobytes())
        return
    generator = np.random.Generator(np.random.Philox([seed, tensor.number]))
    for start in range(0, tensor.elements, PIECE_ELEMENTS):
        count = min(PIECE_ELEMENTS, tensor.elements - start)
        values = generator.standard_normal(count, dtype=np.float32) * np.float32(DEVIATION)
        if mute:
            row_N = np.arange(start, start + count) // tensor.shape[1]
            values[np.isin(row_N, list(mute))] = 0.0
        file.write(to_bfloat16(values).tobytes())


def to_bfloat16(
    values_N: np.ndarray[Any, np.dtype[np.float32]],
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The upper halves of float32 bits, rounded to nearest even; no NaN goes in here."""
    bits_N = values_N.view(np.uint32)
    rounding_N = np.uint32(0x7FFF) + ((bits_N >> np.uint32(16)) & np.uint32(1))
    return ((bits_N + rounding_N) >> np.uint32(16)).astype(np.uint16)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
