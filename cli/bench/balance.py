"""How even are plans of expert copies, on the load they were made for and on the next one?

self        every file on seven layouts, planned and scored on itself, beside EPLB
transferred a mixture planned by minimax, scored on a load that was left out (or on --score-on)
replan      at most a tenth of the copies move
speed       a whole call of `rebalance_experts`
random      layers of many shapes and skews: never less even than EPLB

A transferred score has three columns: `split` (the placement stays, tokens are split on the load at
hand: what moectl's engine does per batch), `fixed` (shares of planning kept) and `equal`. The
summary's figures are `split`; `transferred_equal` and its like stand beside them.
"""

from functools import partial
from pathlib import Path

from ...core.errors import RefusedError
from ..expert_loads import moe_layers
from . import balance_parts as parts
from .balance_random import random_rows
from .frame import BenchOptions, BenchResult, Results, data_folder, require_files

FOLDER = "traces/deepseek-v3-loads"
NAMES = (
    "decode_in1000out1000",
    "decode_in1800out100",
    "prefill_in1000out1000",
    "prefill_in1800out100",
    "prefill_in2000out100",
    "prefill_in2048",
    "prefill_in500out1500",
    "prefill_in512",
)


def run(options: BenchOptions) -> BenchResult:
    """All parts; random layers last, as many as the budget allows."""
    files = options.files or tuple(_given(options))
    loads, targets = _loads(files, options.score_on)
    first = next(iter(loads.values()))
    all_cases = parts.cases(first.shape[1])
    shown = all_cases[:2] + all_cases[2:][:: 4 if options.quick else 1]
    results: Results = {}
    for case in shown:
        for name, load in loads.items():
            options.report("self", f"{case.name} {name}")
            results |= options.shelf.part(
                f"self {case.name} {name}", partial(parts.self_rows, case, name, load)
            )
    results |= _across(options, all_cases[:2], loads, targets)
    options.report("speed", "")
    results |= parts.speed_rows(all_cases[0], loads)
    results |= random_rows(loads, options)
    summary = summed(results, [case.name for case in all_cases])
    summary |= {"files": len(loads), "score_on": len(options.score_on), "moe_layers": len(first)}
    return BenchResult("balance", options.seed, results, summary, notes=_notes(options, loads))


def _given(options: BenchOptions) -> list[Path]:
    return require_files(data_folder(options.data), [f"{FOLDER}/{name}.json" for name in NAMES])


def _loads(files: tuple[Path, ...], score_on: tuple[Path, ...]) -> tuple[parts.Loads, parts.Loads]:
    """(planned on, scored on) with names that do not clash; the second is empty by default."""
    for path in (*files, *score_on):
        if not path.is_file():
            raise RefusedError(f"{path}: missing", next_step="give files of expert loads")
    if len(files) < 2 and not score_on:
        raise RefusedError(
            f"{len(files)} file: leaving one out needs two",
            next_step="give more files, or --score-on FILE",
        )
    loads = moe_layers([*files, *score_on])
    names = list(loads)
    train = {name: loads[name] for name in names[: len(files)]}
    return train, {name: loads[name] for name in names[len(files) :]}


def _across(
    options: BenchOptions, cases: list[parts.Case], loads: parts.Loads, targets: parts.Loads
) -> Results:
    """Transfer and replan: to the given targets, or to every file from all the others."""
    results: Results = {}
    for case in cases:
        for name, load in (targets or loads).items():
            train = {other: each for other, each in loads.items() if other != name}
            options.report("transferred, replan", f"{case.name} to {name}")
            for part in (parts.transfer_rows, parts.replan_rows):
                key = f"{part.__name__} {case.name} {name}"
                results |= options.shelf.part(key, partial(part, case, train, (name, load)))
    name, load = next(iter(loads.items()))
    return results | parts.locality_rows(cases[0], name, load)


def summed(results: Results, cases: list[str]) -> dict[str, float]:
    """moectl's own figures: the worst over files and layouts, or the mean where the key says."""
    main, wide = cases[:2]
    few = [v for case in cases[2:] for v in column(results, f"{case} ", ": ours", "gap_closed")]
    figures = {
        **_own(results, main, wide),
        "gap_closed": min(few, default=float("nan")),
        "vs_eplb_min": min(
            column(results, "random ", "", "vs_eplb_min")
            + column(results, "random ", "", "split_vs_eplb_min")
            + [r["vs_eplb_min"] for n, r in results.items() if ": ours" in n and "vs_eplb_min" in r]
        ),
        **transferred(results, main, wide, ": ours"),
        "plan_ms": max(column(results, "speed ", ": eplb-equal answer", "ms")),
        "refine_ms": max(column(results, "speed ", ": refined", "ms")),
        "replan_kept": min(column(results, f"replan {main} ", "", "kept")),
        "replan_kept_mean": _mean(column(results, f"replan {main} ", "", "kept")),
        "replan_kept_64": min(column(results, f"replan {wide} ", "", "kept")),
        "replan_moved": max(column(results, f"replan {main} ", "", "moved")),
        "random_layers": int(sum(column(results, "random ", "", "layers"))),
        "layers_worse": int(sum(column(results, "random ", "", "worse"))),
        "baseline_checked": int(sum(column(results, "random ", "", "baseline_checked"))),
        "baseline_differs": int(sum(column(results, "random ", "", "baseline_differs"))),
    }
    eplb = _own(results, main, wide, ": eplb")
    eplb |= transferred(results, main, wide, ": mean, eplb")
    results["method eplb"] = eplb
    results["method ours"] = {key: figures[key] for key in eplb}
    return figures


def column(results: Results, begin: str, end: str, key: str) -> list[float]:
    """The values of a key in the rows whose names begin and end so."""
    return [r[key] for n, r in results.items() if n.startswith(begin) and n.endswith(end)]


def _own(results: Results, main: str, wide: str, end: str = ": ours") -> dict[str, float]:
    ratios = [column(results, f"{case} ", end, "bound_ratio") for case in (main, wide)]
    return {
        "balancedness": min(column(results, f"{main} ", end, "balancedness")),
        "bound_ratio": max(ratios[0] + ratios[1]),
    }


def transferred(results: Results, main: str, wide: str, end: str) -> dict[str, float]:
    """The transferred figures: split ones under their plain names, the others beside them."""
    found = {}
    for suffix, key in (("", "split"), ("_equal", "equal"), ("_fixed", "fixed")):
        rows = column(results, f"transferred {main} ", end, key)
        found[f"transferred{suffix}"] = _mean(rows)
        found[f"transferred_worst{suffix}"] = min(rows)
        wider = column(results, f"transferred {wide} ", end, key)
        found[f"transferred_64{suffix}"] = _mean(wider)
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _notes(options: BenchOptions, loads: parts.Loads) -> tuple[str, ...]:
    how = "the --score-on files" if options.score_on else "each file in turn, left out of planning"
    return (
        "balance: mean over largest load of a device, averaged over MoE layers",
        f"transferred: planned on a mixture by minimax, scored on {how}; tokens split on the load"
        " at hand, as the engine does per batch. _equal: copies share equally; _fixed: the shares"
        " of planning are kept",
        "balancedness, bound_ratio, gap_closed: worst file (and layout); bound_ratio is largest"
        " load over its lower bound, 1 at best, at 9 and 5 slots a device; gap_closed at 4 and 3",
        "replan_kept: worst pair of files; at most a tenth of the copies of every layer move",
        "plan_ms, refine_ms: the best of 100 whole calls, worst file; medians stand in the rows",
        f"planned on: {', '.join(loads)}",
    )


def draw(result: BenchResult, path: Path) -> None:
    """Balance per load: on itself, and when it was left out."""
    from .balance_draw import draw_balance

    draw_balance(result, path)
