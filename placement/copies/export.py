"""A plan of copies as JSON for engines, and back.

Layers may have different numbers of slots. Shares are there for experts with several copies: device
by device, they sum to 1. Also read: `physical_to_logical_map` tables as other tools write them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ...core.errors import RefusedError
from . import score
from .layout import Floats, Layout, Slots

FORMAT = "moectl-copies/1"


def layer_plain(load_E: Floats, slot_R: Slots, layout: Layout) -> dict[str, Any]:
    """One layer: experts of every device, and the shares of experts with several copies."""
    copies = score.table(slot_R, layout, len(load_E))
    share_C, _ = score.best_shares(load_E, copies, layout.devices)
    starts = copies.start_E1.tolist()
    return {
        "slots": slot_R.reshape(layout.devices, layout.per_device).tolist(),
        "shares": [
            {
                "expert": expert,
                "devices": copies.device_C[begin:end].tolist(),
                "shares": [round(share, 6) for share in share_C[begin:end].tolist()],
            }
            for expert, (begin, end) in enumerate(pairwise(starts))
            if end - begin > 1
        ],
    }


def slots_of(plain: Any, where: str) -> list[Slots]:
    """[L] of [R] from either form; RefusedError naming `where`."""
    rows: Any = plain
    if isinstance(plain, dict):
        rows = plain.get("physical_to_logical_map")
        if plain.get("format") == FORMAT:
            rows = [_flat(layer["slots"]) for layer in plain["layers"]]
    if not isinstance(rows, Sequence) or not rows or isinstance(rows, str):
        raise RefusedError(
            f"{where}: no placement of copies",
            next_step=f"give a file of format {FORMAT}, or a physical_to_logical_map",
        )
    try:
        table = [np.asarray(row, dtype=np.int32) for row in rows]
    except (ValueError, TypeError, OverflowError) as error:
        raise RefusedError(f"{where}: slots are not expert ids: {error}") from error
    if any(row.ndim != 1 for row in table):
        raise RefusedError(f"{where}: a layer is not one list of expert ids")
    return table


def _flat(slots: Any) -> list[Any]:
    """The experts of all devices, one device after the other."""
    return [expert for device in slots for expert in device]
