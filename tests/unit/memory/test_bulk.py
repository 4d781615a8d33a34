"""Is a whole rank loaded with every byte read once, checked, and given back when it goes wrong?"""

from pathlib import Path

import pytest
import torch

from moectl.core.errors import CheckpointError, PoolExhaustedError
from moectl.memory.bulk import Load, LoadOptions, load_all
from moectl.memory.files import BLOCK_BYTES, DIRECT_BYTES_MIN, WeightFile
from moectl.memory.tensors import tensor_at
from moectl.memory.window import Window

from .conftest import PAGE, RunningHmm, open_fds, write_checkpoint

NAMES = [f"t{number}" for number in range(12)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(50, 70, generator=generator) for name in NAMES}
    tensors["large"] = torch.randn(600, 700, generator=generator)
    write_checkpoint(tmp_path / "m" / "model.safetensors", tensors)
    return tensors


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("direct", [False, True])
def test_every_byte_is_read_once_whoever_wants_it(
    tmp_path: Path, checkpoint: dict[str, torch.Tensor], readers: int, direct: bool
) -> None:
    outs = {name: [torch.zeros_like(t) for _ in range(2)] for name, t in checkpoint.items()}
    told: list[tuple[int, int]] = []
    before = open_fds()
    loaded = load_all(
        tmp_path / "m",
        [Load(name, tuple(targets)) for name, targets in outs.items()],
        LoadOptions(
            readers, direct=direct, progress=lambda done, total: told.append((done, total))
        ),
    )
    total = sum(tensor.nbytes for tensor in checkpoint.values())
    assert (loaded.bytes_read, loaded.bytes_copied) == (total, total)
    assert max(told) == (total, total) and len(told) == len(checkpoint)
    assert all(torch.equal(out, checkpoint[name]) for name in outs for out in outs[name])
    assert open_fds() == before


def test_bytes_are_converted_through_one_bounce_buffer(tmp_path: Path) -> None:
    source = torch.randn(40, 30).bfloat16()
    write_checkpoint(tmp_path / "m" / "model.safetensors", {"a": source, "b": source.clone()})
    out = [torch.zeros(40, 30), torch.zeros(40, 30).bfloat16(), torch.zeros(30)]
    load_all(tmp_path / "m", [Load("a", (out[0],)), Load("b", (out[1],)), Load("a", (out[2],), 7)])
    assert torch.equal(out[0], source.float()) and torch.equal(out[1], source)
    assert torch.equal(out[2], source[7].float())


def test_checksums_are_told_and_compared(
    tmp_path: Path, checkpoint: dict[str, torch.Tensor]
) -> None:
    def loads() -> list[Load]:
        return [Load(name, (torch.zeros_like(t),)) for name, t in checkpoint.items()]

    sums = load_all(tmp_path / "m", loads(), LoadOptions(checksums=True)).checksums
    assert sums.keys() == checkpoint.keys()
    again = load_all(tmp_path / "m", loads(), LoadOptions(1, expected=sums)).checksums
    assert again == sums
    file = tmp_path / "m" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # one bit of the last tensor
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor \w+ has checksum"):
        load_all(tmp_path / "m", loads(), LoadOptions(expected=sums))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "gone is missing"),
        ("shape", "tensor t3 has shape"),
        ("dtype", "tensor t3 is F32"),
    ],
)
def test_the_first_error_names_file_and_tensor_and_pages_go_back(
    tmp_path: Path, checkpoint: dict[str, torch.Tensor], hmm: RunningHmm, damage: str, words: str
) -> None:
    client = hmm.client()
    shape = (70, 50) if damage == "shape" else (50, 70)
    dtype = torch.int32 if damage == "dtype" else torch.float32
    name = "gone" if damage == "missing" else "t3"
    with (
        pytest.raises(CheckpointError, match=words) as raised,
        client.reserve("d0", 8, "m/shared") as reservation,
        Window(client.device("d0"), 8 * PAGE, writable=True) as window,
    ):
        window.map(0, reservation.pages)
        out = tensor_at(window, 0, shape, dtype)
        load_all(tmp_path / "m", [Load("t0", (torch.zeros(50, 70),)), Load(name, (out,))])
    assert str(tmp_path / "m") in raised.value.message
    assert client.usage()[0]["free"] == client.usage()[0]["total"]


def test_a_file_cut_while_it_is_loaded_is_an_error(
    tmp_path: Path, checkpoint: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "m" / "model.safetensors"
    out = {name: torch.zeros_like(tensor) for name, tensor in checkpoint.items()}

    def cut(done: int, total: int) -> None:
        with file.open("r+b") as stream:
            stream.truncate(2000)

    loads = [Load(name, (tensor,)) for name, tensor in out.items()]
    with pytest.raises(CheckpointError, match=r"truncated while tensor \w+ was read"):
        load_all(tmp_path / "m", loads, LoadOptions(1, progress=cut))


@pytest.mark.parametrize("shift", [0, 64, 100])
def test_direct_reading_gives_the_same_bytes_at_any_alignment(tmp_path: Path, shift: int) -> None:
    data = bytes(range(256)) * ((5 << 20) // 256)
    (tmp_path / "f").write_bytes(data)
    out = torch.zeros((5 << 20) + 2 * BLOCK_BYTES, dtype=torch.uint8).numpy()
    begin = -out.ctypes.data % BLOCK_BYTES + shift
    file = WeightFile(tmp_path / "f", direct=True)
    size = DIRECT_BYTES_MIN + 12_345 if shift == 100 else (5 << 20) - 300
    file.read_into(137, memoryview(out[begin : begin + size]))
    assert bytes(out[begin : begin + size]) == data[137 : 137 + size]
    assert not file.is_direct or file.direct_bytes > size - 3 * BLOCK_BYTES
    with pytest.raises(CheckpointError, match="truncated"):
        file.read_into(len(data) - 10, memoryview(bytearray(11)))
    file.close()


def test_claims_hold_pages_back_for_those_that_they_are_promised_to(hmm: RunningHmm) -> None:
    client = hmm.client()
    total = client.usage()[0]["total"]
    client.set_claims("d0", {"m/kv": (100, 1.0), "m/experts": (0, 3.0)})
    experts = client.reserve("d0", total - 100, "m/experts")
    with pytest.raises(PoolExhaustedError, match="guaranteed to m/kv 100"):
        client.reserve("d0", 1, "m/law/adapters")
    client.reserve("d0", 100, "m/kv").commit()
    experts.forfeit()
    client.reserve("d0", 5, "m/law/adapters").commit()  # what one gives back, another has at once
    with pytest.raises(PoolExhaustedError):
        client.set_claims("d0", {})
        client.reserve("d0", total, "m/kv")
