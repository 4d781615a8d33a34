"""How do weights get from a checkpoint into pages, with no copy that could be avoided?

`CheckpointReader` reads the headers once (`core.checkpoint`) and then any tensor straight into the
memory of a tensor that the caller placed on pages. Where the dtypes agree the kernel writes into
the pages; otherwise the bytes pass one bounce buffer of PIECE_BYTES and are converted piece by
piece (bf16 -> fp32 is exact). One expert of a routed layer is read into its slot: gate, up, then
down.

Every refusal is a CheckpointError that names the file and the tensor. Pages are not this file's
business: the caller holds a reservation, and an error leaves it to be forfeited.

Legend: H hidden, I expert hidden. torch is needed here; safetensors' own library is not.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import torch

from ..core.checkpoint import DAMAGED, TensorEntry, read_tensor_entries
from ..core.errors import CheckpointError, MappingError

PIECE_BYTES = 4 * 1024 * 1024  # stays in the last-level cache between reading and converting

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

# How families name one expert's gate, up and down; `layer` is the model's layer index.
_EXPERT_NAMES = (
    ("model.layers.{layer}.mlp.experts.{expert}.", ("gate_proj", "up_proj", "down_proj")),
    ("model.layers.{layer}.block_sparse_moe.experts.{expert}.", ("w1", "w3", "w2")),
)
# One tensor for all experts of a layer: [E, 2I, H] and [E, H, I].
_FUSED_GATE_UP = "model.layers.{layer}.mlp.experts.gate_up_proj"
_FUSED_DOWN = "model.layers.{layer}.mlp.experts.down_proj"


class CheckpointReader:
    """The tensors of a checkpoint folder. Not shared between threads: give each its own.

    Raises CheckpointError on a missing, truncated or malformed file. `bytes_read` counts what came
    from files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.bytes_read = 0
        self._entries = read_tensor_entries(self.folder)
        self._fds: dict[Path, int] = {}

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of that name."""
        return name in self._entries

    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return sorted(self._entries)

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor is. Raises CheckpointError when it is missing."""
        if name not in self._entries:
            raise CheckpointError(
                f"{self.folder}: tensor {name} is missing from the checkpoint",
                next_step="the weights do not belong to this config.json, or a file was not copied",
            )
        return self._entries[name]

    def read_tensor_into(self, name: str, out: torch.Tensor, index: int | None = None) -> None:
        """Fill `out` with a tensor, or with `tensor[index]` of its first dim, converting floats.

        Raises CheckpointError when it is missing, of another shape, of a dtype that does not
        convert exactly, or when the file ends early; MappingError when `out` is not contiguous.
        """
        entry = self.entry(name)
        begin, shape = _part(entry, index)
        _check_fits(entry, shape, out)
        if out.numel() == 0:
            return
        if TORCH_DTYPES[entry.dtype] == out.dtype:
            self._read_exactly(entry, begin, _bytes_of(out))
            return
        flat, done = out.view(-1), 0
        for piece in self._pieces(entry, begin, out.numel()):
            flat[done : done + piece.numel()].copy_(piece)
            done += piece.numel()

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _pieces(self, entry: TensorEntry, begin: int, count: int) -> Iterator[torch.Tensor]:
        """The numbers of a range in order, as views of one bounce buffer."""
        dtype = TORCH_DTYPES[entry.dtype]
        bounce = torch.empty(min(count, PIECE_BYTES // dtype.itemsize), dtype=dtype)
        for start in range(0, count, bounce.numel()):
            piece = bounce[: min(bounce.numel(), count - start)]
            self._read_exactly(entry, begin + start * dtype.itemsize, _bytes_of(piece))
            yield piece

    def _read_exactly(self, entry: TensorEntry, begin: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._fd(entry.file), [target[done:]], begin + done)
            except OSError as error:
                raise CheckpointError(
                    f"{entry.file}: tensor {entry.name} cannot be read: {error}"
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{entry.file}: truncated while tensor {entry.name} was read",
                    next_step=DAMAGED,
                )
            done += count
        self.bytes_read += done

    def _fd(self, file: Path) -> int:
        if file not in self._fds:
            self._fds[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._fds[file]


def read_expert_into(
    reader: CheckpointReader, layer: int, expert: int, gate_up: torch.Tensor, down: torch.Tensor
) -> None:
    """Fill one expert's slot. `layer` is the model's layer index.

    Shapes: gate_up [2I, H] (gate rows, then up rows), down [H, I].
    Raises: as `read_tensor_into`.
    """
    fused = _FUSED_GATE_UP.format(layer=layer)
    if reader.has(fused):
        reader.read_tensor_into(fused, gate_up, expert)
        reader.read_tensor_into(_FUSED_DOWN.format(layer=layer), down, expert)
        return
    gate_name, up_name, down_name = _expert_names(reader, layer, expert)
    half = gate_up.shape[0] // 2
    reader.read_tensor_into(gate_name, gate_up[:half])
    reader.read_tensor_into(up_name, gate_up[half:])
    reader.read_tensor_into(down_name, down)


def _expert_names(reader: CheckpointReader, layer: int, expert: int) -> list[str]:
    """The family's three names; the first family's when none is there, for the error's sake."""
    spellings = [
        [f"{prefix.format(layer=layer, expert=expert)}{leaf}.weight" for leaf in leaves]
        for prefix, leaves in _EXPERT_NAMES
    ]
    return next((names for names in spellings if reader.has(names[0])), spellings[0])


def _part(entry: TensorEntry, index: int | None) -> tuple[int, tuple[int, ...]]:
    """Where a tensor, or one index of its first dim, begins in the file, and its shape."""
    if index is None:
        return entry.begin, entry.shape
    if not entry.shape or not 0 <= index < entry.shape[0]:
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name} of shape {list(entry.shape)} has no index {index}"
        )
    stride = (entry.end - entry.begin) // entry.shape[0]
    return entry.begin + index * stride, entry.shape[1:]


def _check_fits(entry: TensorEntry, shape: Sequence[int], out: torch.Tensor) -> None:
    if tuple(shape) != tuple(out.shape):
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name} has shape {list(shape)}, "
            f"{list(out.shape)} was expected",
            next_step="config.json and the weights are not of the same model",
        )
    dtype = TORCH_DTYPES[entry.dtype]
    if dtype != out.dtype and not (dtype.is_floating_point and out.dtype.is_floating_point):
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name} is {entry.dtype}, which is not read as {out.dtype}"
        )
    if not out.is_contiguous():
        raise MappingError(f"tensor {entry.name} can only be read into contiguous memory")


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's memory as writable bytes; the caller keeps the tensor while it is used."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
