"""`moectl bench cache`: how near to the best possible do expert caches and predictors come?

Replays recorded routes through every policy and many sizes of cache, beside Belady's MIN; judges
the predictors by recall, split by request; and puts policies and prefetching on a simulated link.
Hit rates, loads and recalls are exact counts; only `decide_us` is a timing. How to read the result:
`docs/cache-policies.md`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from ...memory.cache.catalogue import BOUND, DEFAULT, NAMES, make_policy
from ...memory.cache.importers import detect_format, import_trace
from ...memory.cache.native import backend_name
from ...memory.cache.rows import ImportChoices
from ...memory.cache.simulate import ReplayRules, replay
from ...memory.cache.trace import RoutingTrace
from .cache_draw import draw as draw
from .cache_predict import demo_rows, recall_rows
from .cache_stalls import stall_rows
from .frame import BenchOptions, BenchResult, Results, data_folder, require_files

MIXTRAL = "traces/mixtral-8x7b/humaneval_2.jsonl.gz"
QWEN = [f"traces/qwen1.5-moe/layer{layer}.jsonl.gz" for layer in (0, 12, 23)]
EIGHTHS = (2, 3, 4, 6)  # slots in eighths of all objects; 96, 128, 192 of 256 are 3, 4, 6
EIGHTHS_FULL = (1, 2, 3, 4, 5, 6, 7)
GOALS = {3: "gap_captured_96", 4: "gap_captured_128", 6: "gap_captured_192"}
MIXTRAL_OBJECTS = 256
TIMINGS = 3


@dataclass(frozen=True, slots=True)
class NamedTrace:
    """A trace under the name that it has in the results."""

    name: str
    trace: RoutingTrace


def run(options: BenchOptions) -> BenchResult:
    """The whole bench."""
    traces = _traces(options)
    results: Results = {}
    for named in traces:
        options.report(f"replay {named.name}", named.trace.counts.text())
        for pool in _pools(named.trace):
            for eighth in EIGHTHS_FULL if options.full else EIGHTHS:
                size = (_slots(named.trace, eighth, pool), pool)
                results |= options.shelf.part(f"{named.name} {size}", partial(_cell, named, size))
    main = [named for named in traces if named.trace.objects == MIXTRAL_OBJECTS] or traces[:1]
    summary = _gaps(results, main, traces)
    options.report("decision time", backend_name())
    summary |= _decide(results, traces, main)
    recalls, best = recall_rows([(n.name, n.trace) for n in main], options)
    results |= recalls
    summary |= best
    stalls, told = stall_rows(main[0].name, main[0].trace, summary["decide_us"])
    results |= stalls
    summary |= told
    summary["runs"] = len(results)
    notes = [f"{named.name}: {named.trace.counts.text()}" for named in traces]
    demo, demo_notes = demo_rows(options)
    results |= demo
    return BenchResult(
        "cache", options.seed, results, summary, notes=(*notes, *demo_notes, *_missed(summary))
    )


def _traces(options: BenchOptions) -> list[NamedTrace]:
    """The files given, or those of the data folder. vLLM files of single layers are one trace."""
    if options.files:
        require_files(Path(), [str(path) for path in options.files])
        return _of_files(list(options.files))
    folder = data_folder(options.data)
    files = require_files(folder, [MIXTRAL, *QWEN])
    found = _of_files(files[:1]) + _of_files(files[1:])
    qwen = found[1]
    singles = [
        NamedTrace(f"{qwen.name.split('-layer')[0]}-layer{layer}", qwen.trace.of_layers([at]))
        for at, layer in enumerate(qwen.trace.layers)
    ]
    return [found[0], qwen, *singles]


def _of_files(files: list[Path]) -> list[NamedTrace]:
    choices = ImportChoices(repair=True)
    layered = [path for path in files if detect_format(path) == "vllm"]
    found = [
        NamedTrace(_name(path), import_trace([path], choices))
        for path in files
        if path not in layered
    ]
    if layered:
        trace = import_trace(layered, choices)
        layers = "+".join(str(layer) for layer in trace.layers)
        found.append(NamedTrace(f"{layered[0].resolve().parent.name}-layer{layers}", trace))
    return found


def _name(path: Path) -> str:
    return f"{path.resolve().parent.name}-{path.name.split('.')[0]}"


def _pools(trace: RoutingTrace) -> tuple[str, ...]:
    return ("shared", "per-layer") if len(trace.layers) > 1 else ("shared",)


def _slots(trace: RoutingTrace, eighth: int, pool: str) -> int:
    unit = len(trace.layers) if pool == "per-layer" else 1
    return max(1, trace.objects * eighth // 8 // unit) * unit


def _cell(named: NamedTrace, size: tuple[int, str]) -> Results:
    """Every policy at one size = (slots, pool)."""
    slots, pool = size
    hits = {
        name: replay(named.trace, make_policy(name, named.trace, slots), ReplayRules(slots, pool))
        for name in NAMES
    }
    low, high = hits["lru"].hit_rate, hits[BOUND].hit_rate
    return {
        f"{named.name}/{pool}/{slots}/{name}": {
            "slots": slots,
            "share": slots / named.trace.objects,
            "hit_rate": found.hit_rate,
            "loads": found.loads,
            "hit_over_min": found.hit_rate / max(high, 1e-12),
            "loads_ratio": hits[BOUND].loads / found.loads,
            "gap_captured": (found.hit_rate - low) / (high - low) if high > low else 0.0,
        }
        for name, found in hits.items()
    }


def _gaps(results: Results, main: list[NamedTrace], traces: list[NamedTrace]) -> dict[str, float]:
    """The goals on the main traces, and the worst of all traces; worst over cases each."""

    def rows(named: NamedTrace, eighth: int) -> dict[str, float]:
        slots = _slots(named.trace, eighth, "shared")
        return results[f"{named.name}/shared/{slots}/{DEFAULT}"]

    summary = {
        key: min(rows(named, eighth)["gap_captured"] for named in main)
        for eighth, key in GOALS.items()
    }
    summary["hit_over_min"] = min(rows(named, 4)["hit_over_min"] for named in main)
    every = [
        row["gap_captured"]
        for name, row in results.items()
        if name.endswith(f"/{DEFAULT}") and any(name.startswith(f"{n.name}/") for n in traces)
    ]
    summary["worst_gap_anywhere"] = min(every)
    summary["cells_below_lru"] = sum(gap < 0 for gap in every)
    return summary


def _decide(results: Results, traces: list[NamedTrace], main: list[NamedTrace]) -> dict[str, float]:
    """CPU time of policies for a layer step: median of repeats, the worst size of cache."""
    worst: dict[str, float] = {}
    for named in traces:
        for name in ("lru", "layer-cycle", DEFAULT):
            for eighth in GOALS:
                slots = _slots(named.trace, eighth, "shared")
                rules = ReplayRules(slots, timed=True)
                runs = [
                    replay(named.trace, make_policy(name, named.trace, slots), rules)
                    for _ in range(TIMINGS if named in main else 1)
                ]
                spent = median(run_.decide_us for run_ in runs)
                results[f"{named.name}/decide/{slots}/{name}"] = {
                    "decide_us": spent,
                    "decide_p99_us": median(run_.decide_p99_us for run_ in runs),
                }
                key = name if named in main else f"{name} elsewhere"
                worst[key] = max(worst.get(key, 0.0), spent)
    return {
        "decide_us": worst[DEFAULT],
        "decide_us_lru": worst["lru"],
        "decide_us_elsewhere": worst.get(f"{DEFAULT} elsewhere", worst[DEFAULT]),
    }


WANTED = {
    "gap_captured_96": 0.42,
    "gap_captured_128": 0.37,
    "gap_captured_192": 0.35,
    "hit_over_min": 0.80,
    "recall2": 0.57,
    "recall3": 0.70,
    "recall2_frozen": 0.45,
    "recall3_frozen": 0.60,
}


def _missed(summary: dict[str, float]) -> list[str]:
    """Goals that were not reached, in plain words."""
    found = [
        f"MISSED: {key} {summary[key]:.3f}, wanted {least}"
        for key, least in WANTED.items()
        if summary[key] < least
    ]
    found += [
        f"MISSED: {key} {summary[key]:.1f}, wanted at most 20"
        for key in ("decide_us", "decide_us_elsewhere")
        if summary[key] > 20
    ]
    if summary["cells_below_lru"]:
        found.append(f"MISSED: below LRU in {summary['cells_below_lru']:.0f} cells")
    return found
