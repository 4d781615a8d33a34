"""What can a process do ahead that will be a worker? What no orders change.

It goes once through the model's code without memory, so that the pages that it shares with its
fork server are its own where a worker writes, and through the tensor library on a few numbers.
"""

import contextlib
import sys
from typing import Any

import torch

from ...core.priority import can_leave_idle
from ...kernels.dense import COLUMN_FLOOR, ROW_FLOOR
from . import probe
from .template import expert_modules, model_shape, shared_tensor_specs
from .worker import SWITCH_S


def rehearse(template: Any) -> None:
    """Do it for one model. In a process of its own that forks nothing any more."""
    sys.setswitchinterval(SWITCH_S)
    can_leave_idle()
    torch.set_num_threads(1)
    with contextlib.suppress(probe.Refusal):  # it passed once; without this it is only slower
        probe.rehearse(template, [module.moectl_seat for module in expert_modules(template)])
    model_shape(template)
    shared_tensor_specs(template)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(ROW_FLOOR, COLUMN_FLOOR, dtype=dtype)
        torch.nn.functional.linear(x, x)
