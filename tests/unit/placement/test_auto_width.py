"""`parallelism: auto`: which width is chosen, and when is a running model left as it is?"""

from dataclasses import replace

import pytest

from moectl.cli import catalogue
from moectl.core.plan import Infeasible
from moectl.placement.auto import (
    GAIN,
    AutoChoice,
    AutoQuestion,
    AutoReason,
    WidthOption,
    choose,
    refused,
    weigh_widths,
)
from moectl.placement.constants import default_constants
from moectl.placement.quantities import PRECISIONS

_, SHAPE = catalogue.find_shape("qwen3-30b-a3b")
QUESTION = AutoQuestion(
    SHAPE, PRECISIONS["bf16"], catalogue.find_device("h100"), 1024, 256, batch_max=32
)


def options(*rates: float) -> tuple[WidthOption, ...]:
    return tuple(WidthOption(w, 8, rate, 0.1, 0.01) for w, rate in enumerate(rates, 1))


def chosen(answer: AutoChoice | Infeasible) -> tuple[int, AutoReason]:
    assert isinstance(answer, AutoChoice), answer
    return answer.width, answer.reason


def test_without_a_rate_the_fewest_devices_near_the_highest_rate_are_taken() -> None:
    assert chosen(choose(QUESTION, options(1.0, 1.9, 2.0))) == (2, AutoReason.HIGHEST_RATE)
    assert chosen(choose(QUESTION, options(1.0, 1.9, 2.8))) == (3, AutoReason.HIGHEST_RATE)


def test_a_rate_is_served_by_the_fewest_devices() -> None:
    asked = replace(QUESTION, rate=1.5)
    assert chosen(choose(asked, options(1.0, 1.9, 2.8))) == (2, AutoReason.FEWEST_FOR_RATE)


def test_a_rate_that_no_width_serves_says_what_is_served() -> None:
    answer = choose(replace(QUESTION, rate=9.0), options(1.0, 1.9))
    assert isinstance(answer, Infeasible)
    assert "2 devices serve 1.9 requests/s, 9 asked" in answer.reasons[0]
    assert answer.nearest == "workload.requestsPerS 1.9"


@pytest.mark.parametrize("present", [1, 2, 3])
def test_choosing_again_from_the_chosen_width_changes_nothing(present: int) -> None:
    """No flapping: whatever runs, one change later the choice is where it stays."""
    for rates in ((1.0, 1.05, 1.08), (1.0, 1.9, 2.0), (2.0, 1.9, 1.0), (1.0, 1.12, 1.2)):
        for rate in (None, 1.0, 1.04):
            asked = replace(QUESTION, rate=rate)
            first, _ = chosen(choose(asked, options(*rates), present))
            assert chosen(choose(asked, options(*rates), first))[0] == first


def test_a_gain_below_a_tenth_leaves_a_running_model_alone() -> None:
    small = options(1.0, GAIN * 0.99)
    assert chosen(choose(QUESTION, small, present=1))[0] == 1
    answer = choose(QUESTION, options(1.0, 1.05, 1.14), present=3)  # 2 would do for a new one
    assert chosen(answer) == (3, AutoReason.GAIN_TOO_SMALL)
    assert chosen(choose(QUESTION, options(1.0, 1.05, 1.14)))[0] == 2


def test_a_width_that_does_not_fit_is_never_chosen_and_says_why() -> None:
    some = options(1.0, 1.9, 2.8)
    some = (*some[:2], refused(some[2], "device n2/d0: 9 bytes needed"))
    assert chosen(choose(QUESTION, some, present=3))[0] == 2
    answer = choose(QUESTION, tuple(refused(o, "too small") for o in some))
    assert isinstance(answer, Infeasible) and answer.reasons[0] == "1 device: too small"


def test_wider_serves_more_on_a_real_sheet_and_limits_bind() -> None:
    found = weigh_widths(QUESTION, range(1, 9), default_constants())
    rates = [option.rate for option in found]
    assert rates == sorted(rates) and not any(option.refusal for option in found)
    tight = replace(QUESTION, tpot_s=found[0].tpot_s / 100)
    answer = choose(tight, weigh_widths(tight, range(1, 9), default_constants()))
    assert isinstance(answer, Infeasible)
    assert "tpot" in answer.reasons[0] and answer.nearest.startswith("slo.tpot")


def test_a_tighter_limit_takes_a_smaller_batch_before_it_refuses() -> None:
    wide = weigh_widths(QUESTION, range(4, 5), default_constants())[0]
    tight = replace(QUESTION, tpot_s=wide.tpot_s * 0.6)
    less = weigh_widths(tight, range(4, 5), default_constants())[0]
    assert not less.refusal and less.batch < wide.batch and less.tpot_s <= tight.tpot_s
