"""The account that a rank keeps of a request's time."""

from moectl.agents.engine.progress import Sequence, StepItem, StepPlan
from moectl.agents.engine.request import Request
from moectl.agents.engine.spent import Accounts


def plan_of(name: str, start: int, count: int) -> StepPlan:
    sequence = Sequence(Request(name, tuple(range(20)), 4), list(range(20)))
    return StepPlan((StepItem(sequence, start, count, True),), count, 1)


def test_phases_do_not_overlap_and_exchanges_are_told_apart() -> None:
    accounts = Accounts()
    accounts.arrive("a", 10.0)
    accounts.exchanged(5.0)  # of others, before it began
    accounts.plan(plan_of("a", 16, 4), 11.0)
    accounts.exchanged(0.5)
    accounts.token("a", 13.0)
    accounts.plan(plan_of("a", 20, 1), 13.0)
    accounts.exchanged(0.25)
    accounts.token("a", 14.0)
    assert accounts.close("a", 14.0) == {
        "queue_ms": 1000.0,
        "prefill_ms": 1500.0,
        "decode_ms": 750.0,
        "exchange_ms": 750.0,
        "cached_tokens": 16,
    }
    assert accounts.close("a", 15.0) is None


def test_a_request_that_never_ran_only_waited() -> None:
    accounts = Accounts()
    accounts.arrive("a", 1.0)
    told = accounts.close("a", 3.5)
    assert told is not None
    assert (told["queue_ms"], told["prefill_ms"], told["decode_ms"]) == (2500.0, 0.0, 0.0)
    accounts.token("unknown", 4.0)
    accounts.plan(plan_of("unknown", 0, 1), 4.0)
    assert accounts.close("unknown", 5.0) is None
