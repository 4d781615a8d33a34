"""Which tensors a checkpoint folder holds: names, dtypes, shapes and where their bytes are.

Reads safetensors headers only (a few kilobytes a file), so that planning knows a model's sizes on
a laptop without torch. Never reads weights, never executes anything from the folder. Every refusal
is a CheckpointError that names the file and, where there is one, the tensor. Standard library only.
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The format's own limit: a longer header is a damaged file, not a large model.
HEADER_BYTES_MAX = 100_000_000
JSON_BYTES_MAX = 200_000_000  # of config and index; the largest published index is near 40 MB

BYTES_OF_DTYPE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
BYTES_OF_DTYPE |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}

DAMAGED = "copy the file again; its size or content is not what was written"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint; its bytes are `file[begin:end]`, from the file's start."""

    name: str
    file: Path
    dtype: str  # the format's own word, such as "BF16"
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def element_count(self) -> int:
        """The product of the shape."""
        return math.prod(self.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`; raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder",
            next_step="give `source.path` the folder that holds config.json and the weights",
        )
    return _read_object(folder / "config.json")


def read_tensor_entries(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a folder's safetensors files by name; raises CheckpointError."""
    entries: dict[str, TensorEntry] = {}
    for file in weight_files(folder):
        for entry in read_header(file):
            if entry.name in entries:
                other = entries[entry.name].file.name
                raise CheckpointError(f"{file}: tensor {entry.name} is in {other} too")
            entries[entry.name] = entry
    _check_index(folder, entries)
    return entries


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or the shards of its index, sorted by name."""
    index = folder / INDEX_FILE
    if not index.exists():
        single = folder / SINGLE_FILE
        if not single.exists():
            raise CheckpointError(
                f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is here",
                next_step="only safetensors are read; `moectl model init` makes a random model",
            )
        return [single]
    return [folder / name for name in sorted(set(_weight_map(index).values()))]


def read_header(file: Path) -> Iterator[TensorEntry]:
    """The tensors of one safetensors file, checked against its size; raises CheckpointError."""
    try:
        with file.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(HEADER_BYTES_MAX, file_bytes - 8):
                raise CheckpointError(f"{file}: no safetensors header", next_step=DAMAGED)
            header = json.loads(stream.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing", next_step=DAMAGED) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}", next_step=DAMAGED) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the header is not an object", next_step=DAMAGED)
    header.pop("__metadata__", None)
    for name in sorted(header):
        yield _entry(file, name, header[name], 8 + length, file_bytes)


def _entry(file: Path, name: str, fields: Any, start: int, file_bytes: int) -> TensorEntry:
    try:
        dtype, shape = str(fields["dtype"]), tuple(int(size) for size in fields["shape"])
        begin, end = (start + int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: tensor {name}: bad entry", next_step=DAMAGED) from error
    if dtype not in BYTES_OF_DTYPE:
        raise CheckpointError(f"{file}: tensor {name}: dtype {dtype} is not supported")
    if begin < start or end - begin != math.prod(shape) * BYTES_OF_DTYPE[dtype]:
        raise CheckpointError(
            f"{file}: tensor {name}: {end - begin} bytes do not hold {dtype} {list(shape)}",
            next_step=DAMAGED,
        )
    if end > file_bytes:
        raise CheckpointError(
            f"{file}: truncated: tensor {name} ends at byte {end}, the file has {file_bytes}",
            next_step=DAMAGED,
        )
    return TensorEntry(name, file, dtype, shape, begin, end)


def _check_index(folder: Path, entries: dict[str, TensorEntry]) -> None:
    index = folder / INDEX_FILE
    if not index.exists():
        return
    for name, file in sorted(_weight_map(index).items()):
        if name not in entries or entries[name].file.name != file:
            raise CheckpointError(f"{folder / file}: tensor {name} is missing, {index.name} has it")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index; a name that leaves the folder is refused."""
    mapping = _read_object(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{index}: no weight_map in it", next_step=DAMAGED)
    for file in mapping.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: {file!r} is not the name of a file beside it")
    return mapping


def _read_object(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > JSON_BYTES_MAX:
            raise CheckpointError(f"{file}: larger than {JSON_BYTES_MAX} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing", next_step=DAMAGED) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}", next_step=DAMAGED) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a JSON object", next_step=DAMAGED)
    return content
