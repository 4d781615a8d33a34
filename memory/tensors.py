"""How does a torch tensor stand on mapped pages without a copy?

torch keeps a reference to the buffer object that a tensor was made from, for as long as any tensor
shares that storage. The buffer object here is a ctypes array at the window's address which refers
to the window's `AddressRange`: so the addresses outlive every view, and nothing has to be
registered. What it does not do: keep the *pages* mapped after `Window.close`. Using a tensor then
is a fault.

This file must never copy: every `data_ptr()` lies inside the window, and a test asserts it.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence

import torch

from ..core.errors import MappingError
from .layout import DTYPE_BYTES, ExpertLayout, SharedLayout
from .window import Window


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name such as "float32"; raises MappingError on unknown names."""
    dtype = getattr(torch, name, None) if name in DTYPE_BYTES else None
    if not isinstance(dtype, torch.dtype):
        raise MappingError(f"{name!r} is not a dtype that weights can have")
    return dtype


def tensor_at(
    window: Window, offset: int, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """A contiguous tensor of `shape` whose first byte stands at `offset` of the window.

    Writing to it needs a writable window: otherwise the process gets SIGSEGV, not an exception.
    Raises MappingError when it would reach outside the window or is not aligned to its items.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    return _flat(window, offset, count, dtype).view(tuple(shape))


def strided_at(
    window: Window,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Like `tensor_at` with strides in items: one tensor over equal places of many slots."""
    if math.prod(shape) == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    flat = _flat(window, offset, last + 1, dtype)
    return flat.as_strided(tuple(shape), tuple(strides))


def shared_tensors(window: Window, layout: SharedLayout) -> Mapping[str, torch.Tensor]:
    """Every tensor of a shared layout, by its state_dict name, on the window's pages."""
    return {
        name: tensor_at(window, place.offset, place.shape, torch_dtype(place.dtype))
        for name, place in layout.places.items()
    }


def expert_tensors(window: Window, layout: ExpertLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """All slots of an expert layout at once, as (gate_up, down).

    Shapes: gate_up [S, 2I, H], down [S, H, I] for S slots; a slot's own tensors are contiguous, the
    stride between slots is `slot_bytes`.
    """
    shape, slots = layout.shape, len(layout.slot_pages)
    dtype = torch_dtype(shape.dtype)
    step = layout.slot_bytes // dtype.itemsize

    def over_slots(offset: int, rows: int, columns: int) -> torch.Tensor:
        return strided_at(window, offset, (slots, rows, columns), (step, columns, 1), dtype)

    return over_slots(0, *shape.gate_up_shape), over_slots(shape.down_offset, *shape.down_shape)


def is_inside(tensor: torch.Tensor, window: Window) -> bool:
    """Whether all of a contiguous tensor's bytes lie in the window: the proof of zero copy."""
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    return window.address <= start and end <= window.address + window.bytes


class _CudaMemory:
    """A range of a CUDA window as torch takes it without a copy; torch keeps it, it the addresses.

    The device is found by torch from the address.
    """

    def __init__(self, window: Window, offset: int, size: int) -> None:
        self.address_range = window.range
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (window.address + offset, False),
            "version": 3,
        }


def _flat(window: Window, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    size = count * dtype.itemsize
    if offset < 0 or offset + size > window.bytes:
        raise MappingError(f"{offset}..{offset + size} is outside a window of {window.bytes} bytes")
    if offset % dtype.itemsize:
        raise MappingError(f"offset {offset} is not aligned to items of {dtype.itemsize} bytes")
    if window.handle.kind == "cuda":
        return torch.as_tensor(_CudaMemory(window, offset, size), device="cuda").view(dtype)
    if window.handle.kind != "cpu":
        raise MappingError(f"no tensor can stand on a device of kind {window.handle.kind} yet")
    buffer = (ctypes.c_char * size).from_address(window.address + offset)
    buffer.address_range = window.range  # type: ignore[attr-defined]  # keeps the addresses
    return torch.frombuffer(buffer, dtype=dtype)
