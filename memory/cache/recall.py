"""How well does a predictor name a token's experts before the gate does?

recall@n: the share of the experts used that stand among the n best scored, for n = k and k + 1;
precision@n: the share of the n named that are used. Split by request: for each request the
predictor first learns on all the others, then is judged on this one, either going on learning from
the request's own past ("online") or not ("frozen"). The share of right elements is never reported:
naming nothing scores 75 % on it with 2 of 8 experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .policy import LayerStep
from .predictor import Predictor
from .trace import Floats, RoutingTrace


@dataclass(frozen=True, slots=True)
class RecallScore:
    """Shares over all judged (token, layer) pairs of one look-ahead."""

    ahead: int
    recall_k: float
    recall_k1: float
    precision_k: float
    precision_k1: float
    pairs: int


def measure_recall(
    trace: RoutingTrace,
    make: Callable[[], Predictor],
    *,
    ahead: int = 1,
    frozen: bool = False,
) -> RecallScore:
    """Judge a predictor on every request of a trace, learnt on the other requests."""
    named = np.zeros(2)  # experts used that were named, among k and among k + 1
    pairs = 0
    for request in trace.request_ids():
        predictor = make()
        others = trace.take(trace.requests != request)
        for step in steps_of(others):
            predictor.observe(step)
        if frozen:
            predictor.freeze()
        own = trace.of_request(request)
        hits, count = _judge(own, predictor, ahead)
        named += hits
        pairs += count
    return _score(ahead, named, pairs, trace.k)


def _score(ahead: int, named: np.ndarray, pairs: int, k: int) -> RecallScore:
    """named = experts used that stood among the k best, among the k + 1 best."""
    recall_k, recall_k1 = (named / max(pairs * k, 1)).tolist()
    return RecallScore(ahead, recall_k, recall_k1, recall_k, recall_k1 * k / (k + 1), pairs)


def judge_after(
    learnt: RoutingTrace, judged: RoutingTrace, predictor: Predictor, frozen: bool
) -> RecallScore:
    """Learn on one trace, then judge on another, one layer ahead."""
    for step in steps_of(learnt):
        predictor.observe(step)
    if frozen:
        predictor.freeze()
    hits, pairs = _judge(judged, predictor, 1)
    return _score(1, hits, pairs, judged.k)


def recall_of_scores(trace: RoutingTrace, scores: Floats) -> RecallScore:
    """Judge scores [tokens, layers, experts] that were all made before the forward began."""
    k = trace.k
    best = np.argsort(-scores, axis=2, kind="stable")[:, :, : k + 1]
    used = (best[:, :, :, None] == trace.experts[:, :, None, :]).any(axis=3)
    pairs = trace.tokens * len(trace.layers)
    return _score(0, np.array([used[:, :, :k].sum(), used.sum()]), pairs, k)


def _judge(own: RoutingTrace, predictor: Predictor, ahead: int) -> tuple[np.ndarray, int]:
    hits, pairs, layers = np.zeros(2), 0, len(own.layers)
    for step in steps_of(own):
        predictor.observe(step)
        target = step.layer + ahead
        if target >= layers:
            continue
        token = pairs // (layers - ahead)
        best = np.argsort(-predictor.scores(step.layer, target), kind="stable")
        used = np.isin(best[: own.k + 1], own.experts[token, target])
        hits += (int(used[: own.k].sum()), int(used.sum()))
        pairs += 1
    return hits, pairs


def steps_of(trace: RoutingTrace) -> list[LayerStep]:
    """Every layer step of a trace in serving order, all in one lane."""
    gates, objects = trace.gates(), trace.object_ids().tolist()
    return [
        LayerStep(0, layer, trace.experts[t, layer], gates[t, layer], objects[t][layer])
        for t in range(trace.tokens)
        for layer in range(len(trace.layers))
    ]
