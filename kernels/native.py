"""Is the compiled CPU path there, and may it run these tensors?

The extension is optional: without a compiler, or on another device, the tensor-library reference
runs. This file never decides anything else, and never falls back silently in the middle of a model:
the choice depends on shapes, dtype and device only, which are the same for every step.
"""

from types import ModuleType

import torch
from torch import Tensor

extension: ModuleType | None
try:
    from . import _paged as extension  # type: ignore[attr-defined, no-redef, unused-ignore]
except ImportError:
    extension = None

MAX_GROUP = 128  # query heads per KV head, as in _attend.h
LANES = 8  # as in _lanes.h: last dims must be whole multiples
INTERFACE = 4  # as in _paged.c: an extension left over from another version is not used

if extension is not None and getattr(extension, "INTERFACE", 0) != INTERFACE:
    extension = None


def backend_name() -> str:
    """ "native" when the compiled path is there, else "reference"."""
    return "native" if extension is not None else "reference"


def fits(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the compiled path can run on these: of `dtype`, on the CPU, whole contiguous rows."""
    if extension is None:
        return False
    for tensor in tensors:  # a plain loop: this runs some thirty times a step
        if tensor.dtype is not dtype or not tensor.is_cpu:
            return False
        if tensor.shape[-1] % LANES or tensor.stride(-1) != 1:
            return False
    return True
