"""Predictors are judged on requests they were not taught with, and say what their inputs allow."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moectl.core.errors import CheckpointError, RefusedError
from moectl.memory.cache.predictor import (
    NextGate,
    Popularity,
    PreviousToken,
    Trajectory,
    Transitions,
)
from moectl.memory.cache.recall import judge_after, measure_recall, recall_of_scores
from moectl.memory.cache.routing_path import (
    PathShape,
    PathTraining,
    RoutingPathModel,
    load_path_model,
    predict_paths,
    save_path_model,
    shape_for,
    train_path,
)
from moectl.memory.cache.simulate import shape_of
from moectl.memory.cache.trace import RoutingTrace

LAYERS, EXPERTS, KINDS = 5, 8, 10


def _words(requests: int = 4, tokens: int = 60, seed: int = 1) -> RoutingTrace:
    """Every token id has one path: the first layer's experts name it, and all follows from it."""
    random = np.random.default_rng(seed)
    paths = np.argsort(np.random.default_rng(0).random((KINDS, LAYERS, EXPERTS)), axis=2)[:, :, :2]
    ids = random.integers(0, KINDS, requests * tokens)
    return RoutingTrace(
        paths[ids].astype(np.int32),
        EXPERTS,
        tuple(range(LAYERS)),
        np.repeat(np.arange(requests, dtype=np.int32), tokens),
        np.tile(np.arange(tokens, dtype=np.int32), requests),
        np.zeros(requests * tokens, np.uint8),
        token_ids=ids.astype(np.int32),
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_what_depends_on_the_path_is_learnt_from_the_path(frozen: bool) -> None:
    trace = _words()
    shape = shape_of(trace, 20)

    def recall(make: type) -> float:
        return measure_recall(trace, lambda: make(shape), frozen=frozen).recall_k

    assert recall(Trajectory) > 0.8
    assert recall(Trajectory) > recall(Transitions) > recall(Popularity)
    assert recall(PreviousToken) < 0.6


def test_recall_counts_every_judged_pair_once() -> None:
    trace = _words(requests=2, tokens=10)
    score = measure_recall(trace, lambda: Popularity(shape_of(trace, 4)), ahead=2)
    assert score.pairs == 20 * (LAYERS - 2)
    assert score.recall_k1 >= score.recall_k
    assert score.precision_k1 == pytest.approx(score.recall_k1 * 2 / 3)


def test_frozen_predictors_learn_nothing_from_the_judged_request() -> None:
    taught, judged = _words(seed=1), _words(seed=2)
    for make in (Popularity, Transitions, Trajectory):
        predictor = make(shape_of(taught, 20))
        first = judge_after(taught, judged, predictor, True)
        second = judge_after(judged, judged, predictor, True)
        # Equal but for the first token, whose predecessor is another one.
        assert first.recall_k == pytest.approx(second.recall_k, abs=0.005)


def test_perfect_and_void_scores_get_one_and_nothing() -> None:
    trace = _words(requests=1, tokens=12)
    perfect = np.zeros((12, LAYERS, EXPERTS), np.float32)
    np.put_along_axis(perfect, trace.experts.astype(np.int64), 1.0, axis=2)
    assert recall_of_scores(trace, perfect).recall_k == 1.0
    assert recall_of_scores(trace, -perfect).recall_k == 0.0


def test_the_next_gate_names_what_the_gate_will_choose_when_the_state_stays() -> None:
    random = np.random.default_rng(4)
    gates = random.normal(size=(3, 6, 16)).astype(np.float32)
    predictor = NextGate(gates)
    hidden = random.normal(size=16).astype(np.float32)
    predictor.see(hidden)
    scores = predictor.scores(0, 2)
    assert scores.argmax() == (gates[2] @ hidden).argmax()
    assert scores.sum() == pytest.approx(1.0, abs=1e-5)


SMALL = PathShape(LAYERS, EXPERTS, KINDS, hidden=16, inner=64, depth=1, heads=2, context=64)


@pytest.fixture(scope="module")
def small_model() -> RoutingPathModel:
    torch.set_num_threads(1)
    return train_path(_words(), SMALL, PathTraining(steps=150, batch=4, rate=1e-2))


def test_token_ids_alone_name_the_experts_where_they_decide(small_model: RoutingPathModel) -> None:
    judged = _words(seed=9)
    assert recall_of_scores(judged, predict_paths(small_model, judged)).recall_k > 0.9


def test_a_position_never_sees_later_tokens(small_model: RoutingPathModel) -> None:
    ids = torch.randint(0, KINDS, (1, 40))
    other = ids.clone()
    other[0, 30:] = (other[0, 30:] + 1) % KINDS
    with torch.inference_mode():
        one, two = small_model(ids), small_model(other)
    assert torch.equal(one[:, :30], two[:, :30])
    assert not torch.equal(one[:, 30:], two[:, 30:])


def test_a_predictor_survives_its_file(small_model: RoutingPathModel, tmp_path: Path) -> None:
    path = tmp_path / "paths.safetensors"
    save_path_model(small_model, path)
    trace = _words(requests=1)
    again = predict_paths(load_path_model(path), trace)
    assert np.array_equal(again, predict_paths(small_model, trace))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        load_path_model(path)


def test_the_published_size_is_about_seven_megabytes() -> None:
    size = RoutingPathModel(PathShape(layers=24, experts=60, vocab=2048)).bytes
    assert 6e6 < size < 8e6


def test_training_without_token_ids_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(RefusedError, match="no token ids"):
        shape_for(replace(_words(), token_ids=None))


def test_recall_on_the_real_trace_reaches_its_goals(mixtral: RoutingTrace) -> None:
    shape = shape_of(mixtral, 128)
    online = measure_recall(mixtral, lambda: Trajectory(shape))
    frozen = measure_recall(mixtral, lambda: Trajectory(shape), frozen=True)
    assert (online.recall_k >= 0.57, online.recall_k1 >= 0.70) == (True, True)
    assert (frozen.recall_k >= 0.45, frozen.recall_k1 >= 0.60) == (True, True)
