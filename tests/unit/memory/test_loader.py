"""Do weights reach pages exactly, and does every broken checkpoint name its file and tensor?"""

import os
from pathlib import Path

import pytest
import torch

from moectl.core.errors import CheckpointError, MappingError
from moectl.memory.layout import DTYPE_BYTES
from moectl.memory.loader import PIECE_BYTES, TORCH_DTYPES, CheckpointReader, read_expert_into

from .conftest import open_fds, write_checkpoint


def test_every_dtype_of_the_format_has_a_torch_dtype_of_the_same_size() -> None:
    for dtype in TORCH_DTYPES.values():
        assert DTYPE_BYTES[str(dtype).removeprefix("torch.")] == dtype.itemsize


def test_bf16_becomes_fp32_exactly_over_several_pieces(tmp_path: Path) -> None:
    count = 2 * PIECE_BYTES // 2 + 77
    bits = torch.arange(count, dtype=torch.int64).to(torch.int16)
    source = bits.view(torch.bfloat16)
    write_checkpoint(tmp_path / "model.safetensors", {"w": source})
    out = torch.full((count,), 3.0)
    with CheckpointReader(tmp_path) as reader:
        reader.read_tensor_into("w", out)
        assert reader.bytes_read == 2 * count
    same = out.view(torch.int32) == source.float().view(torch.int32)
    assert bool((same | (out.isnan() & source.float().isnan())).all())


def test_equal_dtypes_are_read_without_a_detour(tmp_path: Path) -> None:
    tensors = {
        "f": torch.randn(33, 7),
        "i": torch.arange(5),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }
    write_checkpoint(tmp_path / "model.safetensors", tensors)
    with CheckpointReader(tmp_path) as reader:
        assert reader.names() == ["f", "i", "none", "scalar"]
        for name, tensor in tensors.items():
            out = torch.empty_like(tensor)
            reader.read_tensor_into(name, out)
            assert torch.equal(out, tensor)


def test_tensors_are_found_in_every_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    write_checkpoint(tmp_path / "b.safetensors", {"y": torch.zeros(2)})
    index = '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    before = open_fds()
    with CheckpointReader(tmp_path) as reader:
        for name, expected in (("x", torch.ones(3)), ("y", torch.zeros(2))):
            out = torch.empty_like(expected)
            reader.read_tensor_into(name, out)
            assert torch.equal(out, expected)
    assert open_fds() == before


def test_a_missing_tensor_is_named_with_its_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors", {"x": torch.ones(3)})
    with CheckpointReader(tmp_path) as reader:
        assert reader.has("x") and not reader.has("lm_head.weight")
        with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing") as refusal:
            reader.read_tensor_into("lm_head.weight", torch.empty(3))
    assert str(tmp_path) in str(refusal.value)


def test_another_shape_is_named_with_file_tensor_and_both_shapes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors", {"x": torch.ones(3, 4)})
    with CheckpointReader(tmp_path) as reader, pytest.raises(CheckpointError) as refusal:
        reader.read_tensor_into("x", torch.empty(4, 3))
    for word in ("model.safetensors", "tensor x", "[3, 4]", "[4, 3]"):
        assert word in str(refusal.value)


def test_whole_numbers_are_never_converted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors", {"x": torch.ones(3, dtype=torch.int64)})
    with (
        CheckpointReader(tmp_path) as reader,
        pytest.raises(CheckpointError, match="tensor x is I64"),
    ):
        reader.read_tensor_into("x", torch.empty(3))


def test_a_file_that_was_cut_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_checkpoint(file, {"x": torch.ones(300), "y": torch.ones(300)})
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(CheckpointError, match="truncated: tensor y") as refusal:
        CheckpointReader(tmp_path)
    assert "model.safetensors" in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    file = tmp_path / "model.safetensors"
    write_checkpoint(file, {"x": torch.ones(300), "y": torch.ones(300)})
    with CheckpointReader(tmp_path) as reader:
        os.truncate(file, file.stat().st_size - 10)
        with pytest.raises(CheckpointError, match="truncated while tensor y"):
            reader.read_tensor_into("y", torch.empty(300, dtype=dtype))


def test_memory_that_is_not_contiguous_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors", {"x": torch.ones(3, 4)})
    with CheckpointReader(tmp_path) as reader, pytest.raises(MappingError):
        reader.read_tensor_into("x", torch.empty(4, 3).t())


@pytest.mark.parametrize(
    ("prefix", "leaves"),
    [
        ("model.layers.2.mlp.experts.5.", ("gate_proj", "up_proj", "down_proj")),
        ("model.layers.2.block_sparse_moe.experts.5.", ("w1", "w3", "w2")),
    ],
)
def test_an_expert_is_gate_then_up_then_down(
    tmp_path: Path, prefix: str, leaves: tuple[str, str, str]
) -> None:
    gate, up, down = torch.randn(8, 16), torch.randn(8, 16), torch.randn(16, 8)
    tensors = {
        f"{prefix}{leaf}.weight": t for leaf, t in zip(leaves, (gate, up, down), strict=True)
    }
    write_checkpoint(tmp_path / "model.safetensors", tensors)
    out_gate_up, out_down = torch.empty(16, 16), torch.empty(16, 8)
    with CheckpointReader(tmp_path) as reader:
        read_expert_into(reader, 2, 5, out_gate_up, out_down)
        assert torch.equal(out_gate_up, torch.cat([gate, up])) and torch.equal(out_down, down)
        with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.experts\.6\.gate_proj"):
            read_expert_into(reader, 2, 6, out_gate_up, out_down)


def test_an_expert_is_cut_out_of_a_layer_that_keeps_all_of_them_together(tmp_path: Path) -> None:
    gate_up, down = torch.randn(4, 16, 12).bfloat16(), torch.randn(4, 12, 8).bfloat16()
    prefix = "model.layers.0.mlp.experts."
    write_checkpoint(
        tmp_path / "model.safetensors",
        {f"{prefix}gate_up_proj": gate_up, f"{prefix}down_proj": down},
    )
    out_gate_up, out_down = torch.empty(16, 12), torch.empty(12, 8)
    with CheckpointReader(tmp_path) as reader:
        read_expert_into(reader, 0, 3, out_gate_up, out_down)
        assert torch.equal(out_gate_up, gate_up[3].float())
        assert torch.equal(out_down, down[3].float())
        with pytest.raises(CheckpointError, match="has no index 4"):
            read_expert_into(reader, 0, 4, out_gate_up, out_down)
