"""Draws depend on logits, seed and index only, and follow the distribution asked for."""

import numpy as np
import pytest
import torch

from moectl.agents.engine.request import Sampling
from moectl.agents.engine.sampling import Draw, draw, draw_one, uniform

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05]))


def frequencies(sampling, count=4000):
    drawn = [draw_one(LOGITS, sampling, index) for index in range(count)]
    return np.bincount(drawn, minlength=5) / count


def test_greedy_takes_the_largest_and_ties_go_to_the_lower_id():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert draw(logits, [Draw(Sampling(), 0), Draw(Sampling(), 9)]).tokens == [1, 0]


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
    warm = [Sampling(), Sampling(1.0, seed=1), Sampling(1.0, seed=2)]
    mixed = [Draw(sampling, 7) for sampling in warm]
    assert draw(logits, mixed).tokens[1] == draw(logits, [mixed[1]]).tokens[0]


def test_extreme_logits_do_not_break_the_draw():
    logits = np.array([1e30, -1e30, 0.0])
    assert draw_one(logits, Sampling(temperature=0.01), 0) == 0
    assert draw_one(np.array([-np.inf, 0.0]), Sampling(temperature=1.0), 3) == 1


@pytest.mark.parametrize(("min_p", "kept"), [(0.05, 5), (0.15, 4), (0.35, 2), (0.5, 1), (1.0, 1)])
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(min_p, kept):
    got = frequencies(Sampling(temperature=1.0, min_p=min_p), 600)
    assert (got > 0).tolist() == [True] * kept + [False] * (5 - kept)


def drawn(sampling, prompt=(), generated=(), allowed=None, logits=LOGITS):
    each = Draw(sampling, len(generated), prompt, generated, allowed)
    return draw(torch.from_numpy(logits).float()[None], [each])


@pytest.mark.parametrize(
    ("sampling", "prompt", "generated", "token"),
    [
        (Sampling(), (0,), (0, 0), 0),
        (Sampling(presence_penalty=1.0), (0,), (), 0),  # the prompt does not count
        (Sampling(presence_penalty=1.0), (), (0,), 1),
        (Sampling(presence_penalty=-1.0), (), (1,), 1),
        (Sampling(frequency_penalty=0.5), (), (0,), 0),
        (Sampling(frequency_penalty=0.5), (), (0, 0), 1),
        (Sampling(repetition_penalty=3.0), (0,), (), 1),
        (Sampling(repetition_penalty=3.0), (0, 1), (2,), 0),
        (Sampling(logit_bias=((4, 9.0),)), (), (), 4),
        (Sampling(logit_bias=((0, -9.0), (1, -9.0))), (), (), 2),
    ],
)
def test_penalties_and_bias_change_the_likeliest_token(sampling, prompt, generated, token):
    assert drawn(sampling, prompt, generated).tokens == [token]


def test_a_repetition_penalty_works_on_either_side_of_zero():
    logits = np.array([2.0, 1.5, -1.0])
    assert drawn(Sampling(repetition_penalty=2.0), (0,), logits=logits).tokens == [1]
    logits = np.array([-1.0, -1.5, -2.5])
    assert drawn(Sampling(repetition_penalty=2.0), (0,), logits=logits).tokens == [1]


def test_what_is_not_allowed_is_never_drawn():
    allowed = np.array([False, False, True, False, True])
    assert drawn(Sampling(), allowed=allowed).tokens == [0]  # a plain draw asks no grammar
    warm = Sampling(temperature=5.0, frequency_penalty=0.1, seed=4)
    tokens = {drawn(warm, (), (0,) * n, allowed).tokens[0] for n in range(100)}
    assert tokens == {2, 4}


def test_log_probabilities_are_the_models_own():
    warm = Sampling(temperature=3.0, logit_bias=((4, 100.0),), logprobs=3)
    (likelihood,) = drawn(warm).likelihoods
    assert likelihood.drawn == pytest.approx(np.log(0.05), abs=1e-6)
    assert [token for token, _ in likelihood.top] == [0, 1, 2]
    assert [p for _, p in likelihood.top] == pytest.approx(np.log([0.5, 0.2, 0.15]), abs=1e-6)
    (only_drawn,) = drawn(Sampling(logprobs=0)).likelihoods
    assert only_drawn.top == () and only_drawn.drawn == pytest.approx(np.log(0.5), abs=1e-6)
    assert drawn(Sampling()).likelihoods == [None]
    assert len(drawn(Sampling(logprobs=99)).likelihoods[0].top) == 5
