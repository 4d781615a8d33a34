"""Which rows of a log belong to which request, when the log names one request for all?

A logger that restarts the row number in every forward pass tells where passes begin. Passes of a
steady small width are decode steps, one row a live request; much wider ones are prefill, whose
rows cannot be told apart. In a decode pass a row's number is its lane: engines keep requests in
their lanes and move the last one into a hole, so a lane is one request, with few changes. This is
inferred, never recorded, and `docs/traces.md` says so. Pure.
"""

import numpy as np
import numpy.typing as npt

from .trace import DECODE, PREFILL, Bytes, Ints

PREFILL_RATIO = 2.0  # a pass this much wider than the usual one is prefill


def separate_passes(
    row_numbers: npt.NDArray[np.integer],
) -> tuple[Ints, Ints, Bytes]:
    """Requests, positions and phases [T] out of the row numbers of one layer's rows [T].

    Lanes of decode passes get requests 0..; each prefill pass gets a request of its own after
    them. Positions count a request's rows.
    """
    starts = np.flatnonzero(np.r_[True, np.diff(row_numbers) != 1])
    widths = np.diff(np.r_[starts, len(row_numbers)])
    usual = float(np.median(widths))
    wide = widths > PREFILL_RATIO * usual
    pass_of = np.repeat(np.arange(len(starts)), widths)
    lane = np.arange(len(row_numbers)) - np.repeat(starts, widths)
    lanes = int(widths[~wide].max()) if (~wide).any() else 0
    own = np.cumsum(wide) - 1 + lanes
    requests = np.where(wide[pass_of], own[pass_of], lane).astype(np.int32)
    positions = np.zeros(len(row_numbers), np.int32)
    for request in np.unique(requests):
        at = requests == request
        positions[at] = np.arange(int(at.sum()))
    phases = np.where(wide[pass_of], PREFILL, DECODE).astype(np.uint8)
    return requests, positions, phases
