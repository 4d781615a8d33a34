"""Draws depend on logits, seed and index only, and follow the distribution asked for."""

import numpy as np
import pytest
import torch

from moectl.agents.engine.request import Sampling
from moectl.agents.engine.sampling import draw, draw_one, uniform

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05]))


def frequencies(sampling, count=4000):
    drawn = [draw_one(LOGITS, sampling, index) for index in range(count)]
    return np.bincount(drawn, minlength=5) / count


def test_greedy_takes_the_largest_and_ties_go_to_the_lower_id():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert draw(logits, [(Sampling(), 0), (Sampling(), 9)]) == [1, 0]


def test_frequencies_follow_the_softmax():
    expected = [0.5, 0.2, 0.15, 0.1, 0.05]
    assert frequencies(Sampling(temperature=1.0, seed=5)) == pytest.approx(expected, abs=0.03)


def test_temperature_sharpens_and_flattens():
    powered = np.exp(LOGITS / 0.5)
    assert frequencies(Sampling(temperature=0.5)) == pytest.approx(
        powered / powered.sum(), abs=0.03
    )


def test_top_k_keeps_the_k_likeliest():
    got = frequencies(Sampling(temperature=1.0, top_k=2))
    assert got == pytest.approx([5 / 7, 2 / 7, 0, 0, 0], abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.71, 3), (0.999, 5)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    got = frequencies(Sampling(temperature=1.0, top_p=top_p), 600)
    assert (got > 0).tolist() == [True] * kept + [False] * (5 - kept)


def test_top_p_of_nothing_still_draws_the_likeliest():
    assert frequencies(Sampling(temperature=1.0, top_p=0.0), 50)[0] == 1.0


def test_a_draw_is_a_function_of_seed_and_index():
    warm = Sampling(temperature=1.0, seed=3)
    once = [draw_one(LOGITS, warm, i) for i in range(50)]
    assert [draw_one(LOGITS, warm, i) for i in reversed(range(50))] == once[::-1]
    assert [draw_one(LOGITS, Sampling(temperature=1.0, seed=4), i) for i in range(50)] != once


def test_uniform_numbers_lie_in_the_unit_interval_and_do_not_repeat():
    numbers = [uniform(seed, index) for seed in (0, 1, -1, 2**80) for index in range(200)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert len(set(numbers)) > 590  # 2**80 and 0 share a key: seeds count modulo 2**64


def test_rows_of_one_batch_do_not_touch_each_other():
    logits = torch.from_numpy(np.stack([LOGITS] * 4)).float()
    mixed = [(Sampling(), 0), (Sampling(1.0, seed=1), 7), (Sampling(1.0, seed=2), 7)]
    assert draw(logits, mixed)[1] == draw(logits, [mixed[1]])[0]


def test_extreme_logits_do_not_break_the_draw():
    logits = np.array([1e30, -1e30, 0.0])
    assert draw_one(logits, Sampling(temperature=0.01), 0) == 0
    assert draw_one(np.array([-np.inf, 0.0]), Sampling(temperature=1.0), 3) == 1
