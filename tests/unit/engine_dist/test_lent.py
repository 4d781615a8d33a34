"""A rank waits for what others lend before it takes pages: for whom, and what ends the wait."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from torch import distributed

from moectl.agents.engine.lent import lenders, tell_lent, wait_lent
from moectl.core.plan import DeviceId, Phase, Placement, Prediction, TransitionKind
from moectl.core.records import TransitionRecord

STAY, LEAVE, LEAVE_TOO = (DeviceId("n1", f"d{index}") for index in range(3))
DEADLINE_S = 30.0


def placed(epoch: int, *ranks: DeviceId) -> Placement:
    return Placement("m", epoch, ranks, (), (1,) * len(ranks))


@pytest.fixture
def record() -> Iterator[TransitionRecord]:
    """A change from three ranks to one, with a store to meet at."""
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1)
    )
    yield TransitionRecord(
        "op",
        "m",
        TransitionKind.SCALE,
        Phase.PREPARE,
        1,
        placed(1, STAY, LEAVE, LEAVE_TOO),
        placed(2, STAY),
        (),
        Prediction(0, 0, 0, {}, 0.0, 0.0, 0),
        0.0,
        {},
        0.0,
        f"127.0.0.1:{store.port}",
        {},
    )
    del store


def test_those_who_lend_serve_now_and_leave(record: TransitionRecord) -> None:
    assert lenders(record) == (LEAVE, LEAVE_TOO)
    assert lenders(replace(record, new=placed(2, STAY, LEAVE, LEAVE_TOO))) == ()
    assert lenders(replace(record, old=None)) == ()
    assert lenders(replace(record, kind=TransitionKind.HEAL)) == ()  # they are lost


def test_the_wait_is_over_when_the_last_of_them_has_lent(record: TransitionRecord) -> None:
    outcomes: list[bool] = []
    waiting = threading.Thread(target=lambda: outcomes.append(wait_lent(record)))
    waiting.start()
    tell_lent(record, LEAVE)
    assert not outcomes
    tell_lent(record, LEAVE_TOO)
    waiting.join(DEADLINE_S)
    assert outcomes == [True]


def test_nobody_waits_for_ever_nor_where_nobody_leaves(
    record: TransitionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moectl.agents.engine.lent.WAIT_S", 0.05)
    tell_lent(record, LEAVE)
    assert not wait_lent(record)
    assert wait_lent(replace(record, old=None, store_address="nowhere:1"))


def test_what_was_lent_for_another_operation_does_not_count(
    record: TransitionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moectl.agents.engine.lent.WAIT_S", 0.05)
    for device in (LEAVE, LEAVE_TOO):
        tell_lent(replace(record, operation_id="earlier"), device)
    assert not wait_lent(record)
