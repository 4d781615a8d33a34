"""How does `moectl trace train` train, keep requests back, and judge on them?"""

import time
from pathlib import Path

import numpy as np

from ..core.errors import RefusedError
from ..memory.cache.recall import recall_of_scores
from ..memory.cache.routing_path import (
    PathTraining,
    predict_paths,
    save_path_model,
    shape_for,
    train_path,
)
from ..memory.cache.trace import RoutingTrace
from .progress import open_progress


def train_and_judge(
    trace: RoutingTrace, out: Path, how: tuple[int, int, float]
) -> dict[str, float]:
    """Train on a part of the requests, write the predictor, judge it on the rest.

    how = (steps, seed, share held out). The last requests are held out, at least one of two.
    """
    steps, seed, share = how
    requests = trace.request_ids()
    held = max(1, round(share * len(requests)))
    if len(requests) < 2:
        raise RefusedError("one request only: nothing could be held out to judge on")
    ours = np.isin(trace.requests, requests[-held:])
    shape = shape_for(trace)
    began = time.monotonic()
    with open_progress() as progress:

        def tell(done: int, total: int, loss: float) -> None:
            if done % 10 == 0 or done == total:
                progress.start("train", f"step {done} of {total}, loss {loss:.4f}")

        model = train_path(trace.take(~ours), shape, PathTraining(steps=steps, seed=seed), tell)
        progress.end("train", "ok", f"{model.bytes / 1e6:.2f} MB")
    save_path_model(model, out)
    held_out = trace.take(ours)
    score = recall_of_scores(held_out, predict_paths(model, held_out))
    return {
        "bytes": float(model.bytes),
        "seconds": time.monotonic() - began,
        "recall_k": score.recall_k,
        "recall_k1": score.recall_k1,
        "precision_k": score.precision_k,
    }
