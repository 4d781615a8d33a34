"""`moectl model init`: random models that load, the same for the same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moectl.cli.train import random_model
from moectl.cli.train.random_model import RandomModel, shards_of, tensors_of, write_random_model
from moectl.core.errors import RefusedError, UsageError
from moectl.core.facts import read_model_facts

SHAPE = RandomModel(layers=2, hidden=32, experts=4, expert_hidden=16, heads=2, kv_heads=1,
                    head_dim=16, vocab=64)  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in random_model.TOKENIZER_FILES:
        (folder / name).write_text("{}")
    return folder


def write(out: Path, tokenizer: Path, shape: RandomModel = SHAPE, shard: int = 1 << 30) -> int:
    return write_random_model(
        out, shape, shard_bytes=shard, report=lambda done, total: None, tokenizer_from=tokenizer
    )


def test_the_written_model_is_what_was_asked_for(tmp_path: Path, tokenizer: Path) -> None:
    total = write(tmp_path / "m", tokenizer)
    facts = read_model_facts(tmp_path / "m")
    assert (facts.layers, facts.experts_per_layer, facts.hidden) == (2, (4, 4), 32)
    assert total == 2 * SHAPE.parameters
    assert total == facts.shared_bytes(2) + facts.expert_count * facts.expert_bytes(2)


def test_the_same_seed_gives_the_same_weights_whatever_the_shards(
    tmp_path: Path, tokenizer: Path
) -> None:
    from safetensors.torch import load_file

    write(tmp_path / "one", tokenizer)
    write(tmp_path / "many", tokenizer, shard=8192)
    write(tmp_path / "other", tokenizer, RandomModel(**{**_fields(SHAPE), "seed": 8}))
    one = load_file(tmp_path / "one" / "model.safetensors")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    many = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert one.keys() == many.keys()
    assert all(one[name].equal(many[name]) for name in one)
    assert not one["model.layers.0.mlp.gate.weight"].equal(other["model.layers.0.mlp.gate.weight"])
    assert one["model.norm.weight"].eq(1).all()


def _fields(shape: RandomModel) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in RandomModel.__dataclass_fields__}


def test_a_folder_with_a_model_is_not_overwritten(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "m", tokenizer)
    with pytest.raises(RefusedError, match="holds a model already"):
        write(tmp_path / "m", tokenizer)


def test_shards_keep_order_and_limit() -> None:
    tensors = tensors_of(SHAPE)
    shards = shards_of(tensors, 4096)
    assert [t for shard in shards for t in shard] == tensors
    assert all(len(shard) == 1 or sum(t.bytes for t in shard) <= 4096 for shard in shards)


@pytest.mark.parametrize(
    "changes", [{"experts_per_token": 5}, {"heads": 3, "kv_heads": 2}, {"head_dim": 15}]
)
def test_impossible_shapes_are_usage_errors(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        RandomModel(**{**_fields(SHAPE), **changes})


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    import torch

    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    ours = torch.from_numpy(random_model.to_bfloat16(values).view(np.int16)).view(torch.bfloat16)
    assert ours.equal(torch.from_numpy(values).to(torch.bfloat16))


def test_a_mute_token_has_a_row_of_zeros_and_no_other_weight_changes(
    tmp_path: Path, tokenizer: Path
) -> None:
    from safetensors.torch import load_file

    write(tmp_path / "all", tokenizer)
    write(
        tmp_path / "mute",
        tokenizer,
        RandomModel(**{**_fields(SHAPE), "mute": frozenset({0, 5})}),
    )
    full = load_file(tmp_path / "all" / "model.safetensors")
    mute = load_file(tmp_path / "mute" / "model.safetensors")
    name = random_model.EMBEDDING
    silent = mute[name].eq(0).all(dim=1)
    assert silent.nonzero().flatten().tolist() == [0, 5]
    assert mute[name][~silent].equal(full[name][~silent])
    assert all(mute[other].equal(full[other]) for other in full if other != name)
