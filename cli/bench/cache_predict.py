"""The part of `moectl bench cache` that judges predictors, by recall, split by request."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ...core.errors import MoectlError
from ...memory.cache.policy import CacheShape
from ...memory.cache.predictor import (
    NextGate,
    Popularity,
    Predictor,
    PreviousToken,
    Trajectory,
    Transitions,
)
from ...memory.cache.recall import RecallScore, measure_recall, recall_of_scores
from ...memory.cache.simulate import shape_of
from ...memory.cache.trace import RoutingTrace
from .frame import SOURCE_ROOT, BenchOptions, Results

AHEAD = (1, 2, 4, 8)
MAKERS: dict[str, Callable[[CacheShape], Predictor]] = {
    "popularity": Popularity,
    "previous-token": PreviousToken,
    "transitions": Transitions,
    "trajectory": Trajectory,
}
DEMO = SOURCE_ROOT / "clusters" / "models" / "demo"
DEMO_REQUESTS, DEMO_TOKENS, DEMO_HELD_OUT = 120, 96, 12
TRAIN_LEAST_S = 150.0  # below this much budget the path predictor is not trained


def recall_rows(
    traces: list[tuple[str, RoutingTrace]], options: BenchOptions
) -> tuple[Results, dict[str, float]]:
    """Every online predictor at every look-ahead, learning on and frozen; and the summary."""
    rows: Results = {}
    for name, trace in traces:
        ahead_of = [ahead for ahead in AHEAD if ahead < len(trace.layers)]
        for ahead in ahead_of:
            options.report("recall", f"{name}, {ahead} layers ahead")
            made = partial(_recalls, (name, trace), ahead)
            rows |= options.shelf.part(f"{name} recall {ahead}", made)
    return rows, _summary(rows, [name for name, _ in traces])


def _recalls(named: tuple[str, RoutingTrace], ahead: int) -> Results:
    rows: Results = {}
    for which, make in MAKERS.items():
        for frozen in (False, True):
            mode = "frozen" if frozen else "online"
            score = _measure(named[1], make, ahead, frozen)
            rows[f"{named[0]}/recall/{which}/{mode}/ahead{ahead}"] = _row(score)
    return rows


def _measure(
    trace: RoutingTrace, make: Callable[[CacheShape], Predictor], ahead: int, frozen: bool
) -> RecallScore:
    shape = shape_of(trace, trace.objects // 2)
    return measure_recall(trace, lambda: make(shape), ahead=ahead, frozen=frozen)


def _row(score: RecallScore) -> dict[str, float]:
    return {
        "recall_k": score.recall_k,
        "recall_k1": score.recall_k1,
        "precision_k": score.precision_k,
        "precision_k1": score.precision_k1,
        "pairs": score.pairs,
    }


def _summary(rows: Results, names: list[str]) -> dict[str, float]:
    def worst(mode: str, key: str) -> float:
        found = [rows.get(f"{name}/recall/trajectory/{mode}/ahead1") for name in names]
        return min((row[key] for row in found if row is not None), default=0.0)

    return {
        "recall2": worst("online", "recall_k"),
        "recall3": worst("online", "recall_k1"),
        "recall2_frozen": worst("frozen", "recall_k"),
        "recall3_frozen": worst("frozen", "recall_k1"),
    }


def demo_rows(options: BenchOptions) -> tuple[Results, list[str]]:
    """Predictors that need token ids or hidden states, on the demo model's own routes."""
    if not (DEMO / "model.safetensors").is_file():
        return {}, [f"left out: routing-path predictor and next gate ({DEMO.name} model missing)"]
    if options.left_s() < TRAIN_LEAST_S:
        return {}, ["left out: routing-path predictor and next gate (not enough of --budget left)"]
    try:
        return options.shelf.part("demo", partial(_demo_rows, options, DEMO)), [
            f"demo: {DEMO_REQUESTS} pieces of Python's library, {DEMO_HELD_OUT} held out, "
            "recorded in this run"
        ]
    except (MoectlError, ImportError, OSError) as error:
        return {}, [f"left out: routing-path predictor and next gate ({error})"]


def _demo_rows(options: BenchOptions, folder: Path) -> Results:
    from ...memory.cache.routing_path import PathTraining, predict_paths, shape_for, train_path
    from .recorded import record_routes

    options.report("demo model", "recording routes")
    made = record_routes(folder, DEMO_REQUESTS, DEMO_TOKENS, options.seed)
    trace = made.trace
    held = trace.requests >= DEMO_REQUESTS - DEMO_HELD_OUT
    steps = 700 if options.full else 250

    def tell(step: int, steps: int, loss: float) -> None:
        if step % 25 == 0:
            options.report("routing path", f"step {step} of {steps}, loss {loss:.4f}")

    ours = trace.take(~held)
    model = train_path(ours, shape_for(trace), PathTraining(steps, seed=options.seed), tell)
    paths = predict_paths(model, trace.take(held))
    rows: Results = {
        "demo/recall/routing-path/before-forward": {
            **_row(recall_of_scores(trace.take(held), paths)),
        }
    }
    gates = NextGate(made.gates)
    scores = np.zeros_like(paths[:, 1:])
    for at, token in enumerate(np.flatnonzero(held).tolist()):
        for layer in range(scores.shape[1]):
            gates.see(made.hidden[token, layer])
            scores[at, layer] = gates.scores(layer, layer + 1)
    later = trace.take(held).of_layers(range(1, len(trace.layers)))
    rows["demo/recall/next-gate/ahead1"] = _row(recall_of_scores(later, scores))
    for which, make in MAKERS.items():
        for frozen in (False, True):
            mode = "frozen" if frozen else "online"
            rows[f"demo/recall/{which}/{mode}/ahead1"] = _row(_held_out(trace, held, make, frozen))
    return rows


def _held_out(
    trace: RoutingTrace,
    held: np.ndarray,
    make: Callable[[CacheShape], Predictor],
    frozen: bool,
) -> RecallScore:
    """Learn on the rest, judge on the held-out requests: the same split as the trained one."""
    from ...memory.cache.recall import judge_after

    shape = shape_of(trace, trace.objects // 2)
    return judge_after(trace.take(~held), trace.take(held), make(shape), frozen)
