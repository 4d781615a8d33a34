"""A checkpoint is counted exactly, or refused by the name of what is wrong with it."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from moectl.core.checkpoint import read_tensor_entries
from moectl.core.errors import CheckpointError
from moectl.core.facts import read_model_facts

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 3,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 1,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "hidden_size": 4,
    "moe_intermediate_size": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def tensors_of(layers: tuple[int, ...] = (0, 2)) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (5, 4),
        "model.norm.weight": (4,),
    }
    for layer in layers:
        for expert in range(2):
            for part, shape in (("gate", (2, 4)), ("up", (2, 4)), ("down", (4, 2))):
                shapes[f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"] = shape
    return shapes


def write_file(file: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    header, at = {}, 0
    for name, shape in tensors.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_file(tmp_path / "model.safetensors", tensors_of())
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_a_checkpoint_is_counted_from_its_headers(folder: Path) -> None:
    facts = read_model_facts(folder)
    assert (facts.layers, facts.moe_layers, facts.experts_per_layer) == (3, (0, 2), (2, 2))
    assert facts.expert_bytes(4) == 3 * 4 * 2 * 4
    assert facts.shared_bytes(2) == (5 * 4 + 4) * 2
    assert facts.kv_bytes_per_token(4) == 2 * 3 * 1 * 8 * 4
    assert (facts.expert_count, facts.tied_embeddings, facts.context_tokens) == (4, True, 64)


def test_a_head_tied_to_the_embeddings_is_not_counted_twice(folder: Path) -> None:
    write_file(folder / "model.safetensors", {**tensors_of(), "lm_head.weight": (5, 4)})
    tied = read_model_facts(folder).shared_elements
    change_config(folder, tie_word_embeddings=False)
    assert read_model_facts(folder).shared_elements == tied + 20


def test_only_every_second_layer_may_be_sparse(folder: Path) -> None:
    change_config(folder, decoder_sparse_step=2, mlp_only_layers=[], num_hidden_layers=4)
    write_file(folder / "model.safetensors", tensors_of((1, 3)))
    assert read_model_facts(folder).moe_layers == (1, 3)


def test_shards_are_read_through_their_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = list(tensors_of().items())
    write_file(folder / "a.safetensors", dict(names[:5]))
    write_file(folder / "b.safetensors", dict(names[5:]))
    where = {n: "a.safetensors" if i < 5 else "b.safetensors" for i, (n, _) in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    assert read_model_facts(folder).expert_count == 4
    index.write_text(json.dumps({"weight_map": where | {"x": "a.safetensors"}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: tensor x is missing"):
        read_model_facts(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not the name of a file beside it"):
        read_model_facts(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_model_facts(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        read_model_facts(tmp_path / "nowhere")


def test_a_truncated_file_is_named_with_the_tensor_that_is_cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: truncated: tensor model.layers.2"
    ):
        read_model_facts(folder)


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 64, struct.pack("<Q", 9) + b"not json!"])
def test_a_damaged_header_is_refused(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_model_facts(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16", "shape": [3], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [-4, 0]},
        {"dtype": "Q4", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2]},
        7,
    ],
)
def test_an_entry_that_contradicts_itself_is_refused_by_name(tmp_path: Path, entry: Any) -> None:
    text = json.dumps({"some.tensor": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=r"tensor some\.tensor"):
        read_tensor_entries(tmp_path)


def test_a_missing_expert_is_named(folder: Path) -> None:
    tensors = tensors_of()
    del tensors["model.layers.2.mlp.experts.1.up_proj.weight"]
    write_file(folder / "model.safetensors", tensors)
    with pytest.raises(
        CheckpointError, match=r"layers\.2\.mlp\.experts\.1\.up_proj\.weight is missing"
    ):
        read_model_facts(folder)


def test_a_shape_that_config_contradicts_is_named(folder: Path) -> None:
    change_config(folder, moe_intermediate_size=3)
    with pytest.raises(CheckpointError, match=r"is \[2, 4\], config.json says \[3, 4\]"):
        read_model_facts(folder)


def test_an_unknown_family_is_refused_and_the_known_ones_are_listed(folder: Path) -> None:
    change_config(folder, architectures=["LlamaForCausalLM"])
    write_file(folder / "model.safetensors", {"model.embed_tokens.weight": (5, 4)})
    with pytest.raises(CheckpointError, match=r"(?s)'LlamaForCausalLM' is unsupported.*Qwen3Moe"):
        read_model_facts(folder)


@pytest.mark.parametrize("value", [None, 0, -1, "4", True])
def test_a_field_without_a_usable_number_is_named(folder: Path, value: Any) -> None:
    change_config(folder, hidden_size=value)
    with pytest.raises(CheckpointError, match="hidden_size"):
        read_model_facts(folder)


def test_quantized_weights_are_refused_with_what_to_do(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=r"(?s)quantized.*bfloat16"):
        read_model_facts(folder)


def test_an_unlisted_architecture_with_experts_of_a_known_spelling_is_counted(folder: Path) -> None:
    change_config(folder, architectures=["NewMoeForCausalLM"], mlp_only_layers=None)
    assert read_model_facts(folder).moe_layers == (0, 2)  # where experts are found


def test_layers_past_the_models_own_are_not_loaded(folder: Path) -> None:
    before = read_model_facts(folder).shared_elements
    extra = {"model.layers.3.enorm.weight": (4,), "model.layers.3.mlp.experts.0.up_proj": (9, 9)}
    write_file(folder / "model.safetensors", tensors_of() | extra)
    assert read_model_facts(folder).shared_elements == before
