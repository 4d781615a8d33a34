"""What must be imported before a worker can be forked, and how is that kept cheap?

torch, transformers and the engine are some 2500 modules. What they make lives as long as the
process: a garbage collector that looks through all of it again and again costs a fifth of the CPU
time of the import and finds next to nothing (some 11,000 of a million objects). So it rests
meanwhile, and what is there then is frozen: never looked at, and its memory shared with children.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .orders import WorkerLaunch

RunWorker = Callable[[WorkerLaunch, Any], int]
BuildTemplate = Callable[[Path], Any]


class EngineParts(NamedTuple):
    """What a fork server needs of the engine."""

    build_template: BuildTemplate
    run_worker: RunWorker
    rehearse: Callable[[Any], None] = lambda template: None  # what a worker does with any orders


#: Set before torch is imported: one thread of arithmetic, and no native stack traces in worker logs
#: when a group is given up on purpose.
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def import_engine() -> EngineParts:
    """The imports that workers must not pay for, with one thread of arithmetic only."""
    os.environ.update(_QUIET)
    with lasting():
        import torch

        torch.set_num_threads(1)
        from ..engine import rehearsal, worker

    return EngineParts(worker.build_template, worker.run, rehearsal.rehearse)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """For what makes objects that stay: the collector rests, then leaves them alone for good.

    What fails leaves garbage: that is collected like any other.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
