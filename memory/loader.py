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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from ..core.checkpoint import TensorEntry, read_tensor_entries
from ..core.errors import CheckpointError, MappingError
from ..core.families import FUSED, FUSED_PARTS, SPELLINGS
from .files import WeightFile

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

# Names that a checkpoint may use instead of the model's own.
_RENAMED = ((".mlp.", ".block_sparse_moe."),)


class CheckpointReader:
    """The tensors of a checkpoint folder. Not shared between threads: give each its own.

    Raises CheckpointError on a missing, truncated or malformed file. `bytes_read` counts what came
    from files. `direct` reads past the page cache where the file system allows it. `on_bytes(data,
    checksum) -> checksum` sees every byte as it stands in the file; `checksum` is its last word.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        direct: bool = False,
        on_bytes: Callable[[memoryview, int], int] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.bytes_read = 0
        self.checksum = 0
        self._direct, self._on_bytes = direct, on_bytes
        self._entries = read_tensor_entries(self.folder)
        self._files: dict[Path, WeightFile] = {}
        self._bounce: torch.Tensor | None = None

    @property
    def direct_bytes(self) -> int:
        """Bytes read past the page cache so far."""
        return sum(file.direct_bytes for file in self._files.values())

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of that name."""
        return self._spelled(name) in self._entries

    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return sorted(self._entries)

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor is. Raises CheckpointError when it is missing."""
        found = self._entries.get(self._spelled(name))
        if found is None:
            raise CheckpointError(
                f"{self.folder}: tensor {name} is missing from the checkpoint",
                next_step="the weights do not belong to this config.json, or a file was not copied",
            )
        return found

    def _spelled(self, name: str) -> str:
        """The checkpoint's word for a tensor of the model."""
        if name in self._entries:
            return name
        others = (name.replace(ours, theirs) for ours, theirs in _RENAMED)
        return next((other for other in others if other in self._entries), name)

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
        while self._files:
            self._files.popitem()[1].close()

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
        if self._bounce is None:
            self._bounce = torch.empty(PIECE_BYTES, dtype=torch.uint8)
        bounce = self._bounce.view(dtype)
        for start in range(0, count, bounce.numel()):
            piece = bounce[: min(bounce.numel(), count - start)]
            self._read_exactly(entry, begin + start * dtype.itemsize, _bytes_of(piece))
            yield piece

    def _read_exactly(self, entry: TensorEntry, begin: int, target: memoryview) -> None:
        try:
            self._file(entry.file).read_into(begin, target)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error.message} while tensor {entry.name} was read", next_step=error.next_step
            ) from error
        self.bytes_read += len(target)
        if self._on_bytes is not None:
            self.checksum = self._on_bytes(target, self.checksum)

    def _file(self, path: Path) -> WeightFile:
        if path not in self._files:
            self._files[path] = WeightFile(path, direct=self._direct)
        return self._files[path]


@dataclass(frozen=True, slots=True)
class ExpertStyle:
    """What is particular about a family's experts: how the file keeps them, and their biases.

    A transposed file has [H, 2I] and [I, H], an interleaved one gate and up in turn; the slot has
    neither. Shapes: gate_up_bias [2I], down_bias [H].
    """

    is_transposed: bool = False
    is_interleaved: bool = False
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


def read_expert_into(
    reader: CheckpointReader,
    layer: int,
    expert: int,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    style: ExpertStyle | None = None,
) -> None:
    """Fill one expert's slot. `layer` is the model's layer index.

    Shapes: gate_up [2I, H] (gate rows, then up rows), down [H, I].
    Raises: as `read_tensor_into`.
    """
    fused = FUSED.format(layer=layer, part=FUSED_PARTS[0])
    if reader.has(fused):
        _read_fused(reader, (layer, expert), (gate_up, down), style or ExpertStyle())
        return
    gate_name, up_name, down_name = _expert_names(reader, layer, expert)
    half = gate_up.shape[0] // 2
    reader.read_tensor_into(gate_name, gate_up[:half])
    reader.read_tensor_into(up_name, gate_up[half:])
    reader.read_tensor_into(down_name, down)


def expert_span(reader: CheckpointReader, layer: int, expert: int) -> tuple[Path, int, int]:
    """(file, begin, bytes) of one expert: where its first matrix stands, bytes of all of them.

    Biases are not counted. Raises CheckpointError when a tensor is missing.
    """
    fused = [FUSED.format(layer=layer, part=part) for part in FUSED_PARTS[:2]]
    if reader.has(fused[0]):
        parts = [reader.entry(name) for name in fused]
        begin = parts[0].begin + expert * (parts[0].end - parts[0].begin) // parts[0].shape[0]
        sizes = [(part.end - part.begin) // part.shape[0] for part in parts]
        return parts[0].file, begin, sum(sizes)
    entries = [reader.entry(name) for name in _expert_names(reader, layer, expert)]
    return entries[0].file, entries[0].begin, sum(each.end - each.begin for each in entries)


def _read_fused(
    reader: CheckpointReader,
    key: tuple[int, int],
    weights: tuple[torch.Tensor, torch.Tensor],
    style: ExpertStyle,
) -> None:
    """One expert out of tensors that hold all experts of a layer."""
    layer, expert = key
    outs = (*weights, style.gate_up_bias, style.down_bias)
    for part, out in zip(FUSED_PARTS, outs, strict=True):
        if out is None:
            continue
        name, is_gate = FUSED.format(layer=layer, part=part), part.startswith("gate")
        is_turned = style.is_transposed and out.dim() == 2
        if not is_turned and not (is_gate and style.is_interleaved):
            reader.read_tensor_into(name, out, expert)
            continue
        held = torch.empty(out.shape[::-1] if is_turned else out.shape, dtype=out.dtype)
        reader.read_tensor_into(name, held, expert)
        rows = held.T if is_turned else held
        if is_gate and style.is_interleaved:
            half = out.shape[0] // 2
            out[:half].copy_(rows[::2])
            out[half:].copy_(rows[1::2])
        else:
            out.copy_(rows)


def _expert_names(reader: CheckpointReader, layer: int, expert: int) -> tuple[str, str, str]:
    """The family's three names; the first family's when none is there, for the error's sake."""
    spelled = [spelling.names(layer, expert) for spelling in SPELLINGS]
    return next((names for names in spelled if reader.has(names[0])), spelled[0])


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
