"""Which model do the memory benches load, and how is it made in seconds?

A Qwen3-MoE of more than 4 GiB in bfloat16, as a folder that transformers' own loader reads. Every
tensor is one random block, rotated by the tensor's number: different everywhere, and written as
fast as the disk takes it.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..train.random_model import (
    RandomModel,
    Tensor,
    config_of,
    shard_header,
    shards_of,
    tensors_of,
    to_bfloat16,
)

GIB = 1 << 30
SHARD_BYTES = 2 * GIB
BLOCK_ELEMENTS = 1 << 20

# 8 layers x 96 experts of 6 MiB: 4.5 GiB, one expert three pages of 2 MiB.
MODEL = RandomModel(
    layers=8,
    hidden=1024,
    experts=96,
    experts_per_token=8,
    expert_hidden=1024,
    heads=16,
    kv_heads=4,
    head_dim=64,
)


def write_model(folder: Path, seed: int, report: Callable[[str, str], None]) -> int:
    """Write the model's files; returns the bytes of its tensors."""
    generator = np.random.Generator(np.random.Philox([seed]))
    block = to_bfloat16(
        generator.standard_normal(BLOCK_ELEMENTS, dtype=np.float32) * np.float32(0.02)
    )
    folder.mkdir(parents=True, exist_ok=True)
    shards = shards_of(tensors_of(MODEL), SHARD_BYTES)
    placed: dict[str, str] = {}
    done = 0
    for index, shard in enumerate(shards):
        name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        with open(folder / name, "wb") as file:
            file.write(shard_header(shard))
            for tensor in shard:
                file.write(_bytes_of(block, tensor))
                done += tensor.bytes
            report("attach: writing the model", f"{done / GIB:.1f} GiB")
        placed |= {tensor.name: name for tensor in shard}
    table = {"metadata": {"total_size": done}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config_of(MODEL)), encoding="utf-8")
    return done


def _bytes_of(block: "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]", tensor: Tensor) -> bytes:
    turned = np.roll(block, tensor.number * 977)
    repeats = -(-tensor.elements // BLOCK_ELEMENTS)
    return np.tile(turned, repeats)[: tensor.elements].tobytes()
