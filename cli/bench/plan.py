"""How true, how good and how fast are plans? Facts, memory, time, anchors, exactness, speed.

facts       parameter totals of every card against what is published
floors      the least memory for a million tokens against the published floors
rows        predictions on measured rows that no fit has seen, by left-out model and device
anchors     published long-context figures
optimal     random instances against brute force
speed       a 32-device question and a heterogeneous fleet of 10,000 devices
"""

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .frame import BenchOptions, BenchResult, Results, data_folder, require_files

if TYPE_CHECKING:
    from ...placement.scores import Score

INSTANCES = 1000
ROWS_FILE = "silicon/calibration.csv"
# Published least memory for a million tokens, in GB over all devices.
FLOORS = {
    "qwen2.5-7b-1m": 120.0,
    "qwen2.5-14b-1m": 320.0,
    "qwen3-30b-a3b": 240.0,
    "qwen3-235b-a22b": 1000.0,
}
MILLION_CONTEXT = 1_010_000  # the recommended length of those models' own serving line
MILLION_CHUNK = 131_072
Part = tuple[Results, dict[str, float], list[str]]


def run(options: BenchOptions) -> BenchResult:
    """All parts; the slow one (rows) last but one."""
    file = options.files[0] if options.files else None
    if file is None:
        file = require_files(data_folder(options.data), [ROWS_FILE])[0]
    results: Results = {}
    summary: dict[str, float] = {}
    notes: list[str] = []
    parts: tuple[tuple[str, Callable[[], Part]], ...] = (
        ("facts", _facts),
        ("floors", _floors),
        ("anchors", _anchors),
        ("speed", _speed),
        ("rows", lambda: _rows(file)),
        ("optimal", lambda: _optimal(options)),
    )
    for name, part in parts:
        options.report(name, "")
        rows, figures, said = part()
        results |= rows
        summary |= figures
        notes += said
    return BenchResult("plan", options.seed, results, summary, notes=tuple(notes))


def _facts() -> Part:
    from ...placement.families import READERS
    from .. import catalogue

    results: Results = {}
    notes = ["param_error: beyond the rounding of figures published to two digits (marked)"]
    for name, card in catalogue.cards().items():
        published = card["published"]
        if card["config"]["architectures"][0] not in READERS:
            notes.append(f"card {name} is refused: its published file is incomplete")
            continue
        _, shape = catalogue.find_shape(name)
        total = published["totalBillion"]
        if total is None:
            notes.append(f"card {name} has no published total: {published['source']}")
            continue
        billions = shape.total_parameters / 1e9
        rounding = published.get("roundedToBillion", 0) / 2
        if rounding:
            notes.append(f"card {name}: {billions:.2f}B against {total}B, rounded")
        results[f"facts {name}"] = {
            "total_b": billions,
            "published_b": float(total),
            "error": max(0.0, abs(billions - total) - rounding) / total,
            "raw_error": abs(billions / total - 1),
        }
    worst = {
        "param_error": max(row["error"] for row in results.values()),
        "param_error_raw": max(row["raw_error"] for row in results.values()),
        "cards": len(results),
    }
    return results, worst, notes


def _floors() -> Part:
    from ...placement.candidates import enumerate_layouts
    from ...placement.memory_terms import USABLE, Demand, memory_terms
    from ...placement.quantities import PRECISIONS
    from .. import catalogue

    hardware = catalogue.find_device("h200")
    results: Results = {}
    for name, published in FLOORS.items():
        _, shape = catalogue.find_shape(name)
        copies = 5 if "1m" in name else 1  # dual chunk attention projects queries five times
        demand = Demand(1.0, MILLION_CONTEXT, MILLION_CHUNK, copies)
        best = float("inf")
        for layout in enumerate_layouts(shape, hardware.node_devices, 64):
            terms = memory_terms(shape, layout, PRECISIONS["bf16"], demand)
            if terms.total <= hardware.hbm_bytes * USABLE:
                best = min(best, terms.total * layout.devices)
        results[f"floor {name}"] = {
            "gb": best / 1e9,
            "published_gb": published,
            "share": best / 1e9 / published,
        }
    shares = [row["share"] for row in results.values()]
    return results, {"floor_share_min": min(shares), "floor_share_max": max(shares)}, []


def _anchors() -> Part:
    from ...placement.anchors import anchors
    from .. import catalogue

    shapes = {name: shape for name, (_, shape) in catalogue.all_shapes().items()}
    found = anchors(shapes, catalogue.devices(), catalogue.constants())
    results = {
        f"anchor {a.name}": {"published": a.published, "predicted": a.predicted, "error": a.error}
        for a in found
    }
    notes = [f"anchor {a.name}: {a.assumption}" for a in found if a.assumption]
    return results, {"anchors": max(abs(a.error) for a in found), "anchor_count": len(found)}, notes


def _speed() -> Part:
    from ...placement.candidates import Question, Workload
    from ...placement.quantities import PRECISIONS
    from ...placement.search import Pool, best_fleet
    from .. import catalogue

    constants, devices = catalogue.constants(), catalogue.devices()
    cases = {
        "32 h200, Qwen3-32B": ("qwen3-32b", (0.3, 0.01), [("h200", 4)]),
        "32 h200, DeepSeek-V3": ("deepseek-v3", (2.0, 0.05), [("h200", 4)]),
        "10,000 of three kinds, DeepSeek-V3": (
            "deepseek-v3",
            (2.0, 0.05),
            [("h200", 500), ("b200", 500), ("h20", 250)],
        ),
    }
    results: Results = {}
    for title, (model, (ttft, tpot), fleet) in cases.items():
        _, shape = catalogue.find_shape(model)
        work = Workload(4000, 500, ttft, tpot)
        question = Question(shape, PRECISIONS["fp8"], "sglang", work)
        pools = [Pool(devices[name], nodes, 8) for name, nodes in fleet]
        took = []
        for _ in range(5):
            began = time.perf_counter()
            answer = best_fleet(question, pools, constants)
            took.append(time.perf_counter() - began)
        results[f"speed {title}"] = {
            "seconds": min(took),
            "median_s": sorted(took)[2],
            "first_s": took[0],
            "gap": answer.gap,
            "devices": sum(pool.devices for pool in pools),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = [row["seconds"] for row in results.values()]
    figures = {
        "plan32_ms": times[0] * 1e3,  # the incumbent's own example
        "plan32_moe_ms": times[1] * 1e3,
        "plan_s": times[2],
        "plan_rss_mb": peak,
    }
    note = "plan32_ms, plan_s: the best of five runs; the median and the first stand beside them"
    return results, figures, [note]


def _rows(file: Path) -> Part:
    import numpy as np

    from ...placement import scores
    from ..calibration import believed, by_rule

    evidence, left, seen = believed(file)
    zero = scores.folded(evidence, scores.by_model)
    by_model = scores.score(evidence, *zero, scores.by_model)
    refined = scores.refined_score(evidence, *zero, scores.by_model)
    device = scores.folded(evidence, scores.by_device)
    by_device = scores.score(evidence, *device, scores.by_device)
    roofline = np.exp(scores.roofline(evidence)) / evidence.evidence.tpot
    results: Results = {
        "zero-shot, model left out": _plain(by_model),
        "zero-shot, device left out": _plain(by_device),
        "five rows of each group": _plain(refined),
        "naive roofline": {"tpot_mape": float(np.mean(np.abs(roofline - 1)))},
    }
    for fold, (count, tpot, ttft) in {**by_model.per, **by_device.per}.items():
        results[f"fold {fold}"] = {"rows": count, "tpot_mape": tpot, "ttft_mape": ttft}
    notes = [f"left out, {rule}: lines {lines}" for rule, lines in by_rule(left).items()]
    figures = {
        "tpot_mape_zero": by_model.tpot_mape,
        "ttft_mape_zero": by_model.ttft_mape,
        "tpot_mape": refined.tpot_mape,
        "ttft_mape": refined.ttft_mape,
        "spearman": min(by_model.spearman, refined.spearman),
        "layout_score": min(by_model.layout_score, refined.layout_score),
        "rows_seen": seen,
        "rows_scored": by_model.rows,
    }
    return results, figures, notes


def _plain(score: "Score") -> dict[str, float]:
    from ..calibration import summary

    return summary(score)


def _optimal(options: BenchOptions) -> Part:
    from ...placement.search import best_fleet
    from .. import catalogue
    from .plan_brute import best_rate, random_instance

    rng = random.Random(options.seed)
    constants, devices = catalogue.constants(), list(catalogue.devices().values())
    same = feasible = runs = 0
    largest = 0.0
    for _ in range(INSTANCES):
        if options.left_s() < 5:
            break
        question, pools = random_instance(rng, devices)
        found = best_fleet(question, pools, constants)
        truth = best_rate(question, pools, constants)
        gap = abs(found.rate - truth) / truth if truth else found.rate
        runs += 1
        same += gap <= 1e-9
        feasible += truth > 0
        largest = max(largest, gap)
    figures = {"optimal": same / runs if runs else 0.0, "instances": runs}
    case = {"runs": runs, "equal": same, "feasible": feasible, "largest_gap": largest}
    return {"random instances against brute force": case}, figures, []


def draw(result: BenchResult, path: Path) -> None:
    """Errors by fold, and anchors against what was published."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    folds = {n[5:]: row for n, row in result.results.items() if n.startswith("fold ")}
    places = range(len(folds))
    left.bar([p - 0.2 for p in places], [r["tpot_mape"] for r in folds.values()], 0.4, label="TPOT")
    left.bar([p + 0.2 for p in places], [r["ttft_mape"] for r in folds.values()], 0.4, label="TTFT")
    left.set_xticks(list(places), list(folds), rotation=40, ha="right")
    left.set_ylabel("mean error, this fold left out")
    left.legend()
    points = {n[7:]: row for n, row in result.results.items() if n.startswith("anchor ")}
    bars = right.barh(list(points), [100 * row["error"] for row in points.values()])
    right.bar_label(bars, fmt="%.0f %%")
    right.axvspan(-15, 15, alpha=0.12)
    right.invert_yaxis()
    right.set_xlabel("predicted against published, %")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
