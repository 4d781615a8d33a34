"""From files of loads to a plan of copies: what `moectl balance` does, and what it says about it.

Layers with the same number of slots are planned together; that number differs from layer to layer
only where `auto:` asked for it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import RefusedError, UsageError
from ..placement.copies import budgets, export, plan, score
from ..placement.copies.bound import bounds
from ..placement.copies.layout import Floats, Layout, Slots, check_layout
from ..placement.copies.replan import moved_copies, replan


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    layout: Layout
    is_auto: bool = False  # slots differ by layer, with `layout.slots` as their mean
    shares: str = "split"
    local: float = 0.0
    current: Path | None = None
    moved_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan: for every layer its layout and slots, and how many copies move (-1: no old plan)."""

    wish: Wish
    layouts: tuple[Layout, ...]
    slots: tuple[Slots, ...]
    moved: tuple[int, ...]


def read_slots(text: str) -> tuple[int, bool]:
    """(slots of a layer, whether layers may differ): 288, or auto:288."""
    number = text.removeprefix("auto:")
    if not number.isdigit():
        raise UsageError(f"--slots {text}: not a number", next_step="such as 288 or auto:288")
    return int(number), number != text


def read_share(text: str) -> float:
    """A share of the copies: 10% or 0.1."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"--move {text}: not a share", next_step="such as 10% or 0.1")
    return value


def answer(loads: Mapping[str, Floats], wish: Wish) -> Answer:
    """Plan for all loads at once; RefusedError when it cannot be."""
    tables = list(loads.values())
    layers, experts = tables[0].shape
    check_layout(wish.layout, experts)
    if wish.current is not None:
        return _moved_a_little(tables, wish)
    per_device = [wish.layout.per_device] * layers
    if wish.is_auto:
        per_device = budgets.layer_budgets(_mean(tables), wish.layout, wish.shares)
    slots: list[Slots] = [np.empty(0, dtype=np.int32)] * layers
    for count in sorted(set(per_device)):
        layout = replace(wish.layout, slots=count * wish.layout.devices)
        chosen = [layer for layer, mine in enumerate(per_device) if mine == count]
        found = _planned([table[chosen] for table in tables], layout, wish)
        for layer, row in zip(chosen, found, strict=True):
            slots[layer] = row
    layouts = tuple(replace(wish.layout, slots=n * wish.layout.devices) for n in per_device)
    return Answer(wish, layouts, tuple(slots), (-1,) * layers)


def _mean(tables: list[Floats]) -> Floats:
    mean: Floats = np.mean([each / each.sum(axis=1, keepdims=True) for each in tables], axis=0)
    return mean


def _planned(tables: list[Floats], layout: Layout, wish: Wish) -> Slots:
    if len(tables) > 1 or wish.local > 0:
        return plan.plan_mixture(tables, layout, None, wish.local).slot_LR
    return plan.plan_layers(tables[0], layout, plan.thorough(layout, wish.shares)).slot_LR


def _slots_there(current: Path, devices: int) -> list[Slots]:
    """The placement of a file; RefusedError when it was made for another number of devices."""
    try:
        plain = json.loads(current.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RefusedError(f"{current}: missing") from error
    except (OSError, ValueError) as error:
        raise RefusedError(f"{current}: no JSON: {error}") from error
    rows = export.slots_of(plain, str(current))
    made_for = plain.get("devices", devices) if isinstance(plain, dict) else devices
    if made_for != devices:  # cut otherwise, every copy would seem to be where it is not
        raise RefusedError(
            f"{current}: made for {made_for} devices, --devices says {devices}",
            next_step=f"add --devices {made_for}, or plan anew without --current",
        )
    return rows


def _moved_a_little(tables: list[Floats], wish: Wish) -> Answer:
    assert wish.current is not None
    rows = _slots_there(wish.current, wish.layout.devices)
    if len(rows) != len(tables[0]):
        raise RefusedError(
            f"{wish.current}: {len(rows)} layers, the loads have {len(tables[0])} with experts"
        )
    layers = len(rows)
    slots: list[Slots] = [np.empty(0, dtype=np.int32)] * layers
    moved = [0] * layers
    for size in sorted({len(row) for row in rows}):
        layout = replace(wish.layout, slots=size)
        check_layout(layout, tables[0].shape[1])
        chosen = [layer for layer, row in enumerate(rows) if len(row) == size]
        old = np.stack([rows[layer] for layer in chosen])
        mine = [table[chosen] for table in tables]
        found = replan(old, mine, layout, wish.moved_share, wish.shares).plan.slot_LR
        changed = moved_copies(old, found, layout, tables[0].shape[1])
        for at, layer in enumerate(chosen):
            slots[layer], moved[layer] = found[at], int(changed[at])
    layouts = tuple(replace(wish.layout, slots=len(row)) for row in rows)
    return Answer(wish, layouts, tuple(slots), tuple(moved))


def scores(loads: Floats, found: Answer) -> dict[str, float]:
    """Balance of the plan under a load, both ways to split, beside EPLB's and the bound's."""
    each = [_layer_scores(loads[i : i + 1], found, i) for i in range(len(loads))]
    means = {key: float(np.mean([row[key] for row in each])) for key in each[0]}
    worst = min(range(len(each)), key=lambda layer: each[layer]["split"])
    return {**means, "worst_layer": worst, "worst_balance": each[worst]["split"]}


def _layer_scores(load: Floats, found: Answer, layer: int) -> dict[str, float]:
    layout, slots = found.layouts[layer], found.slots[layer][None]
    eplb = plan.searched(load, found.wish.layout, plan.quick())[1]
    largest = {
        "eplb": score.equal_largest(load, eplb, found.wish.layout),
        "equal": score.equal_largest(load, slots, layout),
        "split": score.split_largest(load, slots, layout),
        "bound": np.asarray(bounds(load, layout)),
    }
    return {key: float(score.balance(load, most, layout)[0]) for key, most in largest.items()}


def reason(loads: Floats, found: Answer, layer: int) -> str:
    """Why the fullest device of a layer cannot have less: its heaviest expert, and its copies."""
    layout, load_E, slots = found.layouts[layer], loads[layer], found.slots[layer]
    copies = score.table(slots, layout, len(load_E))
    share_C, most = score.best_shares(load_E, copies, layout.devices)
    work_C = share_C * np.repeat(load_E, np.diff(copies.start_E1))
    device_D = np.bincount(copies.device_C, weights=work_C, minlength=layout.devices)
    device = int(device_D.argmax())
    mine = np.flatnonzero(copies.device_C == device)
    top = int(mine[work_C[mine].argmax()])
    expert = int(np.searchsorted(copies.start_E1, top, side="right")) - 1
    count = int(copies.start_E1[expert + 1] - copies.start_E1[expert])
    low = bounds(load_E[None], layout)[0]
    where = f"layer {layer}: device {device} has {most / low - 1:.2%} more than the bound"
    what = f"expert {expert} ({count} {'copy' if count == 1 else 'copies'})"
    return f"{where}; {work_C[top] / most:.0%} of it is {what}"


def to_plain(loads: Mapping[str, Floats], found: Answer) -> dict[str, Any]:
    """The JSON of a plan: slots, shares for the mean of the loads, and scores per load."""
    mean = _mean(list(loads.values()))
    each = zip(mean, found.slots, found.layouts, found.moved, strict=True)
    return {
        "format": export.FORMAT,
        "experts": mean.shape[1],
        "devices": found.wish.layout.devices,
        "planned_on": list(loads),
        "scores": {name: scores(table, found) for name, table in loads.items()},
        "layers": [
            {
                "layer": layer,
                **export.layer_plain(load_E, slot_R, layout),
                **({"moved": moved} if moved >= 0 else {}),
            }
            for layer, (load_E, slot_R, layout, moved) in enumerate(each)
        ],
    }
