"""How true, how good and how fast are plans? Facts, memory, time, anchors, exactness, speed.

facts       parameter totals of every card against what is published
floors      the least memory for a million tokens against the published floors
long        a million tokens on 64 devices: layout, chunks, first token, memory
rows        predictions on measured rows that no fit has seen, by left-out model and device
rival       AIConfigurator on the same rows, where it is installed
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
    from ...placement.scores import Believed, Score
    from ...placement.weigh import Array

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
RIVAL_LEAVES_S = 300.0  # of the time given, for the random instances
Part = tuple[Results, dict[str, float], list[str]]


def run(options: BenchOptions) -> BenchResult:
    """All parts; the slow ones (rows, instances) last."""
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
        ("long", _long),
        ("speed", _speed),
        ("rows", lambda: _rows(file, options)),
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
        raw = abs(billions / total - 1)
        if rounding:
            notes.append(
                f"card {name}: {billions:.2f}B computed, {total}B published to the nearest"
                f" {2 * rounding:g}B: {raw:.4f} apart, inside the rounding if at most"
                f" {rounding / total:.4f}"
            )
        results[f"facts {name}"] = {
            "total_b": billions,
            "published_b": float(total),
            "error": max(0.0, abs(billions - total) - rounding) / total,
            "raw_error": raw,
            "rounding": rounding / total,
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


def _long() -> Part:
    """The fastest first token of a million on 64 devices, over all layouts and chunks."""
    from dataclasses import asdict

    from ...placement.candidates import Question, Workload
    from ...placement.long_prompt import cut
    from ...placement.quantities import PRECISIONS
    from ...placement.search import Pool, best_fleet
    from .. import catalogue

    constants, hardware = catalogue.constants(), catalogue.find_device("h200")
    results: Results = {}
    for name in FLOORS:
        _, shape = catalogue.find_shape(name)
        question = Question(shape, PRECISIONS["bf16"], "any", Workload(1_000_000, 1024))
        fleet = best_fleet(question, (Pool(hardware, 8, 8),), constants)
        serving = [c for c in fleet.candidates[0] if c.role == "serve"]
        for title, found in (
            ("any", min(serving, key=lambda c: c.ttft_s)),
            (
                "pipeline",
                min((c for c in serving if c.layout.pp > 1), key=lambda c: c.ttft_s),
            ),
        ):
            parts = cut(question, hardware, found, constants)
            results[f"long {name}, {title}"] = {
                **{key: float(value) for key, value in asdict(found.layout).items()},
                "chunk": float(found.chunk),
                "chunks": float(len(parts.chunks)),
                "ttft_s": found.ttft_s,
                "tpot_ms": 1e3 * found.tpot_s,
                "gb_of_device": found.memory_bytes / 1e9,
                "bubble": parts.bubble,
                "bubble_of_even_chunks": parts.fixed_bubble,
            }
    bubbles = [row["bubble"] for name, row in results.items() if name.endswith("pipeline")]
    return results, {"long_bubble": max(bubbles)}, []


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


def _rows(file: Path, options: BenchOptions) -> Part:
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
    rules = by_rule(left)
    results["rows left out by rule"] = {rule: len(lines) for rule, lines in rules.items()}
    notes = [f"left out, {rule}: lines {lines}" for rule, lines in rules.items()]
    for title, found in (("model", by_model), ("device", by_device)):
        results[f"spread over folds, {title}"] = _spread(found)
    rival, beside, said = _rival(evidence, zero, options)
    results |= rival
    notes += said
    figures = beside | {
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


def _spread(score: "Score") -> dict[str, float]:
    """Mean, least, most and deviation of the folds' errors, every fold counting the same."""
    import numpy as np

    found: dict[str, float] = {}
    for index, name in ((1, "tpot"), (2, "ttft")):
        errors = np.array([fold[index] for fold in score.per.values()])
        found |= {
            f"{name}_mean": float(errors.mean()),
            f"{name}_least": float(errors.min()),
            f"{name}_most": float(errors.max()),
            f"{name}_deviation": float(errors.std()),
        }
    return found


def _rival(evidence: "Believed", zero: "tuple[Array, Array]", options: BenchOptions) -> Part:
    """AIConfigurator and our zero-shot predictions on the rows that it answers."""
    import numpy as np

    from . import plan_rival

    if not plan_rival.is_installed():
        return {}, {}, ["AIConfigurator: not installed (pip install 'moectl[bench]'), not compared"]
    until = options.left_s() - RIVAL_LEAVES_S
    began = time.perf_counter()
    answers, refused = plan_rival.answers(
        evidence.rows, options.report, lambda: until - (time.perf_counter() - began)
    )
    at = [i for i, row in enumerate(evidence.rows) if row.line in answers]
    notes = [f"AIConfigurator, {count} rows unanswered: {why}" for why, count in refused.items()]
    if not at:
        return {}, {"rival_rows": 0}, notes
    theirs = np.array([answers[evidence.rows[i].line] for i in at])
    has = evidence.has_ttft[at] > 0
    tpot, ttft = evidence.evidence.tpot[at], evidence.evidence.ttft[at]

    def errors(first: "Array", second: "Array") -> dict[str, float]:
        missed = np.abs(first / tpot - 1), np.abs(second / ttft - 1)[has]
        return {
            "rows": len(at),
            "tpot_mape": float(missed[0].mean()),
            "ttft_mape": float(missed[1].mean()),
            "tpot_median": float(np.median(missed[0])),
            "ttft_median": float(np.median(missed[1])),
        }

    rival = errors(theirs[:, 0], theirs[:, 1])
    results: Results = {
        "AIConfigurator, the rows that it answers": rival,
        "moectl zero-shot, the same rows": errors(np.exp(zero[0][at]), np.exp(zero[1][at])),
    }
    figures = {
        "rival_tpot_mape": rival["tpot_mape"],
        "rival_ttft_mape": rival["ttft_mape"],
        "rival_rows": len(at),
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
