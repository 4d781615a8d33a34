"""Submit messages become requests, or are refused with the reason; tokens become entries."""

import json

import pytest

from moectl.agents.engine.progress import EngineRefused
from moectl.agents.engine.request import Grammar, Likelihood, Request, Sampling, TokenOut
from moectl.agents.engine.submit import BIAS_MAX, request_of, sampling_of, token_entry

LEAST = {"op": "submit", "id": "r1", "prompt": [1, 2], "max_tokens": 5}


def test_the_least_message_is_a_greedy_request():
    assert request_of(LEAST, "7/r1") == Request("7/r1", (1, 2), 5)


def test_every_field_is_understood():
    message = LEAST | {
        "eos": [0],
        "already": [4],
        "priority": -3,
        "cache_salt": "tenant",
        "sampling": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 3,
            "seed": 11,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "logit_bias": [[5, 2.5]],
            "logprobs": 2,
            "grammar": {"kind": "regex", "text": "a+"},
        },
    }
    sampling = Sampling(
        0.5, 0.9, 3, 11, 0.1, 1.2, 0.5, -0.5, ((5, 2.5),), 2, Grammar("regex", "a+")
    )
    expected = Request("x", (1, 2), 5, sampling, (0,), (4,), -3, "tenant")
    assert request_of(json.loads(json.dumps(message)), "x") == expected


def test_null_is_the_same_as_absent():
    names = ["temperature", "top_p", "min_p", "logprobs", "logit_bias", "grammar", "seed", "top_k"]
    assert sampling_of(dict.fromkeys(names)) == Sampling()


@pytest.mark.parametrize(
    ("plain", "why"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 1e9}, "presence_penalty"),
        ({"logprobs": 1000}, "logprobs"),
        ({"logit_bias": [[1, float("inf")]]}, "finite"),
        ({"logit_bias": [[1, 0.0]] * (BIAS_MAX + 1)}, "more than"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(plain, why):
    with pytest.raises(EngineRefused, match=why):
        sampling_of(plain)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 5},
        {"id": ""},
        {"id": "x" * 300},
        {"prompt": "text"},
        {"prompt": [1.5]},
        {"eos": [[]]},
    ],
)
def test_what_no_gateway_sends_is_malformed(wrong):
    with pytest.raises((ValueError, TypeError)):
        request_of(LEAST | wrong, "x")


def test_a_token_carries_its_likelihood_only_when_asked():
    assert token_entry("r", TokenOut("1/r", 4, 9)) == ["r", 4, 9]
    told = TokenOut("1/r", 4, 9, Likelihood(-0.5, ((9, -0.5), (3, float("-inf")))))
    assert token_entry("r", told) == ["r", 4, 9, {"logprob": -0.5, "top": [[9, -0.5], [3, -1e4]]}]
