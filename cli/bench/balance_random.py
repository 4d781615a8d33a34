"""Is a plan ever less even than EPLB's, on a hundred thousand layers of many shapes and skews?

Every layer is scored apart from the planner: equal shares by numpy, split shares by
`core.token_split`. A share of the layers is planned by the Python baseline too, so that "EPLB" is
not only what the C loops say it is.
"""

from collections.abc import Callable

import numpy as np

from ...placement.copies import plan, score
from ...placement.copies.eplb import eplb_slots
from ...placement.copies.layout import Floats, Layout
from .balance_parts import Loads, not_worse
from .frame import BenchOptions, Results

LAYERS = 102_400
CHUNK = 256
CHECKED = 2  # layers of every chunk that the Python baseline plans too
SPLIT = 32  # layers of every chunk that are planned for split tokens too

# experts, slots, devices, nodes, groups: many slots and few, with and without hierarchy.
SHAPES = (
    (256, 288, 32, 1, 1),
    (256, 288, 32, 4, 8),
    (256, 320, 64, 1, 1),
    (256, 288, 72, 1, 1),
    (128, 160, 32, 4, 8),
    (128, 136, 8, 1, 1),
    (64, 64, 8, 1, 1),
    (64, 72, 24, 1, 1),
    (60, 64, 16, 1, 1),
    (64, 128, 64, 1, 1),
    (64, 64, 64, 1, 1),
    (16, 24, 4, 2, 4),
    (8, 12, 4, 1, 1),
)
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


def _zipf(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    power = rng.uniform(0.3, 1.6, (size[0], 1))
    ranks = np.arange(1, size[1] + 1)[None]
    return rng.permuted(np.round(1e6 * ranks**-power), axis=1)


def _lognormal(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    return np.round(1e4 * rng.lognormal(0, rng.uniform(0.2, 1.6, (size[0], 1)), size))


def _sparse(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Few experts have work at all, as in a small batch."""
    used = rng.random(size) < rng.uniform(0.02, 0.6, (size[0], 1))
    return (used * rng.integers(1, 50, size)).astype(float)


DRAWS: dict[str, Draw] = {
    "uniform": lambda rng, size: rng.integers(0, 10_000, size).astype(float),
    "zipf": _zipf,
    "lognormal": _lognormal,
    "sparse": _sparse,
    "ties": lambda rng, size: rng.integers(0, 4, size).astype(float),
}


def real_like(loads: Loads) -> Draw:
    """Real layers, experts drawn anew and shaken."""
    rows = np.concatenate(list(loads.values()))

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
        chosen = rows[rng.integers(0, len(rows), size[0])]
        picked = np.take_along_axis(chosen, rng.integers(0, rows.shape[1], size), axis=1)
        return np.round(picked * rng.lognormal(0, 0.3, size))

    return draw


def random_rows(loads: Loads, options: BenchOptions) -> Results:
    """One row for each kind of load: layers, and the worst of EPLB's load over ours."""
    draws = DRAWS | {"real-like": real_like(loads)}
    wanted = LAYERS * (10 if options.full else 1) // (16 if options.quick else 1)
    chunks = -(-wanted // CHUNK)
    rows: Results = {f"random {name}": _empty() for name in draws}
    rng = np.random.default_rng(options.seed)
    for chunk in range(chunks):
        name = list(draws)[chunk % len(draws)]
        experts, *sizes = SHAPES[chunk // len(draws) % len(SHAPES)]
        if chunk % 40 == 0:
            options.report("random layers", f"{chunk * CHUNK:,} of {wanted:,}")
        if options.left_s() < 10:
            break
        _score(draws[name](rng, (CHUNK, experts)), Layout(*sizes), rows[f"random {name}"])
    return {name: row for name, row in rows.items() if row["layers"]}


def _empty() -> dict[str, float]:
    return {"layers": 0, "vs_eplb_min": np.inf, "vs_eplb_mean": 0.0, "split_layers": 0} | {
        "split_vs_eplb_min": np.inf,
        "worse": 0,
        "baseline_checked": 0,
        "baseline_differs": 0,
    }


def _score(loads: Floats, layout: Layout, row: dict[str, float]) -> None:
    loads = np.where(loads.sum(axis=1, keepdims=True) > 0, loads, 1.0)
    first = plan.searched(loads, layout, plan.quick())[1]
    found = plan.searched(loads, layout, plan.fast(layout))[1]
    base = score.equal_largest(loads, first, layout)
    ratio = not_worse(base, score.equal_largest(loads, found, layout))
    few = plan.plan_layers(loads[:SPLIT], layout, plan.Effort(layout.devices, layout.devices, 2))
    split = not_worse(base[:SPLIT], score.split_largest(loads[:SPLIT], few.slot_LR, layout))
    truth = eplb_slots(loads[:CHECKED], layout)
    before = row["layers"]
    row["vs_eplb_mean"] = (row["vs_eplb_mean"] * before + ratio.sum()) / (before + len(loads))
    row["layers"] = int(before + len(loads))
    row["vs_eplb_min"] = min(row["vs_eplb_min"], float(ratio.min()))
    row["split_vs_eplb_min"] = min(row["split_vs_eplb_min"], float(split.min()))
    row["split_layers"] = int(row["split_layers"] + len(split))
    row["worse"] = int(row["worse"] + (ratio < 1).sum() + (split < 1).sum())
    row["baseline_checked"] = int(row["baseline_checked"] + len(truth))
    row["baseline_differs"] = int(
        row["baseline_differs"] + (truth != first[:CHECKED]).any(axis=1).sum()
    )
