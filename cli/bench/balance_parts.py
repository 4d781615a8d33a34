"""The parts of the balance bench: each gives rows, none of them prints or knows the summary.

Balance is mean over largest load of a device, averaged over MoE layers. Methods:

eplb                 EPLB, global, copies share equally
eplb hierarchical    EPLB with 8 groups on 4 nodes, where that divides
eplb, split          EPLB's placement, but tokens split best
ours, equal          our placement for engines that share equally
ours                 our placement, tokens split best
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...placement.copies import plan, score
from ...placement.copies.layout import Floats, Layout, Slots
from ...placement.copies.rebalance import rebalance_experts
from ...placement.copies.replan import moved_copies, replan
from .frame import Results

Loads = dict[str, Floats]  # file -> [L, E]
# Slots per device, and devices as a share of the experts: 288/32, 320/64, ... for 256 experts.
SHAPES = {9: (1 / 8,), 5: (1 / 4,), 4: (9 / 32, 5 / 16, 3 / 8), 3: (3 / 8, 1 / 2)}
REPEATS = 100


@dataclass(frozen=True, slots=True)
class Case:
    """A layout of a model's experts, by its name in the rows."""

    name: str
    layout: Layout


def cases(experts: int) -> list[Case]:
    """288/32, 320/64, 288/72, 320/80, 384/96, 288/96 and 384/128 for 256 experts."""
    found: dict[str, Case] = {}
    for per_device, shares in SHAPES.items():
        for share in shares:
            devices = max(1, round(experts * share), -(-experts // per_device))
            layout = Layout(devices * per_device, devices)
            name = f"{layout.slots}/{devices}"
            found.setdefault(name, Case(name, layout))
    return list(found.values())


def self_rows(case: Case, name: str, loads: Floats) -> Results:
    """One file on one layout, planned and scored on itself, by every method."""
    layout = case.layout
    eplb = plan.plan_layers(loads, layout, plan.quick())
    equal = plan.plan_layers(loads, layout, plan.thorough(layout, "equal"))
    ours = plan.plan_layers(loads, layout, plan.thorough(layout))
    low, base = eplb.bound_L, eplb.equal_L
    largest = {"eplb": base, "eplb, split": eplb.split_L}
    largest |= {"ours, equal": equal.equal_L, "ours": ours.split_L}
    if layout.devices % 4 == 0 and loads.shape[1] % 8 == 0:
        walls = Layout(layout.slots, layout.devices, 4, 8)
        largest["eplb hierarchical"] = plan.plan_layers(loads, walls, plan.quick()).equal_L
    return {
        f"{case.name} {name}: {method}": {
            "balancedness": float(score.balance(loads, most, layout).mean()),
            "bound_ratio": float((most / low).mean()),
            "gap_closed": _closed(base, most, low),
            "vs_eplb_min": float(not_worse(base, most).min()),
        }
        for method, most in largest.items()
    }


def not_worse(eplb_L: Floats, most_L: Floats) -> Floats:
    """EPLB's largest load over ours; 1 where only rounding differs."""
    ratio = eplb_L / most_L
    return np.where(np.abs(ratio - 1) < 1e-9, 1.0, ratio)


def _closed(eplb_L: Floats, most_L: Floats, low_L: Floats) -> float:
    """Which share of EPLB's gap to the bound is closed, pooled over layers."""
    gap = float((eplb_L / low_L - 1).sum())
    return float((eplb_L / low_L - most_L / low_L).sum()) / gap if gap > 1e-12 else 1.0


def transfer_rows(case: Case, train: Loads, target: tuple[str, Floats]) -> Results:
    """Planned on some loads, scored on another one, by every method and every way to split."""
    name, loads = target
    layout = case.layout
    mean = np.mean([each / each.sum(axis=1, keepdims=True) for each in train.values()], axis=0)
    planned = {
        "mean, eplb": plan.plan_layers(mean, layout, plan.quick()),
        "mean, ours": plan.plan_layers(mean, layout, plan.thorough(layout, "equal")),
        "ours": plan.plan_mixture(list(train.values()), layout),
    }
    rows: Results = {}
    for method, found in planned.items():
        shares = score.shares_of(mean, found.slot_LR, layout)
        largest = {
            "split": score.split_largest(loads, found.slot_LR, layout),
            "equal": score.equal_largest(loads, found.slot_LR, layout),
            "fixed": score.fixed_largest(loads, found.slot_LR, layout, shares),
        }
        rows[f"transferred {case.name} to {name}: {method}"] = {
            key: float(score.balance(loads, most, layout).mean()) for key, most in largest.items()
        }
    return rows


def replan_rows(case: Case, sources: Loads, target: tuple[str, Floats]) -> Results:
    """From the plan for each source to another load, by a few moves and by starting over."""
    name, loads = target
    layout = case.layout
    fresh = plan.plan_layers(loads, layout, plan.thorough(layout))
    eplb = plan.plan_layers(loads, layout, plan.quick())
    rows: Results = {}
    for source, load in sources.items():
        old = plan.plan_layers(load, layout, plan.thorough(layout, "equal")).slot_LR
        found = replan(old, [loads], layout, 0.1)
        before, after, best = (
            score.balance(loads, most, layout).mean()
            for most in (found.before_split_L, found.plan.split_L, fresh.split_L)
        )
        gain = float(best - before)
        rows[f"replan {case.name} {source} to {name}"] = {
            "before": float(before),
            "after": float(after),
            "fresh": float(best),
            "kept": float(after - before) / gain if gain > 1e-9 else 1.0,
            "moved": _share(old, found.plan.slot_LR, layout, loads.shape[1]),
            "eplb_moved": _share(old, eplb.slot_LR, layout, loads.shape[1]),
        }
    return rows


def _share(old: Slots, new: Slots, layout: Layout, experts: int) -> float:
    """The largest share of a layer's copies that move."""
    return float(moved_copies(old, new, layout, experts).max() / layout.slots)


def speed_rows(case: Case, loads: Loads) -> Results:
    """Milliseconds of a whole call of `rebalance_experts`, maps included."""
    efforts = {"eplb-equal answer": plan.quick(), "refined": plan.fast(case.layout)}
    rows: Results = {}
    for name, load in loads.items():
        for method, effort in efforts.items():
            took = _times(partial(_rebalance, load, case, effort))
            most = plan.plan_layers(load, case.layout, effort)
            rows[f"speed {case.name} {name}: {method}"] = {
                "ms": min(took),
                "median_ms": sorted(took)[len(took) // 2],
                "first_ms": took[0],
                "bound_ratio": float((most.equal_L / most.bound_L).mean()),
            }
    return rows


def _rebalance(load: Floats, case: Case, effort: plan.Effort) -> object:
    return rebalance_experts(load, case.layout.slots, 1, 1, case.layout.devices, effort)


def _times(work: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1e3)
    return took


def locality_rows(case: Case, name: str, loads: Floats) -> Results:
    """A price on work away from its node instead of a wall: balance, and how much is away."""
    layout = Layout(case.layout.slots, case.layout.devices, 4, 8)
    if layout.devices % 4 or loads.shape[1] % 8:
        return {}
    walls = plan.plan_layers(loads, layout, plan.quick())
    rows = {f"locality {case.name} {name}: eplb hierarchical": _away(loads, walls, walls, layout)}
    for price in (0.0, 0.02, 0.2, 1.0, 10.0):
        found = plan.plan_mixture([loads], layout, None, price)
        rows[f"locality {case.name} {name}: ours, price {price:g}"] = _away(
            loads, found, walls, layout
        )
    return rows


def _away(
    loads: Floats, found: plan.CopyPlan, walls: plan.CopyPlan, layout: Layout
) -> dict[str, float]:
    node_R = np.repeat(layout.node_of(), layout.per_device)
    away = []
    for load_E, slot_R, wall_R in zip(loads, found.slot_LR, walls.slot_LR, strict=True):
        home_E = plan.start_home(wall_R, layout, loads.shape[1])
        each_R = (load_E / np.bincount(slot_R, minlength=len(load_E)))[slot_R]
        away.append(float(each_R[home_E[slot_R] != node_R].sum() / load_E.sum()))
    most = score.equal_largest(loads, found.slot_LR, layout)
    return {
        "balancedness": float(score.balance(loads, most, layout).mean()),
        "away": float(np.mean(away)),
    }
