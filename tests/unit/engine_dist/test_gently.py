"""Work beside a serving engine runs in order, stops when told, and never strands an error."""

import os
import threading
import time

import pytest

from moectl.agents.engine.gently import Work, run_gently
from moectl.core.errors import DeadlineError
from moectl.core.priority import GENTLE_NICE, SessionPriority, be_idle


class Session(SessionPriority):
    """Counts."""

    restored = 0

    def restore(self) -> bool:
        self.restored += 1
        return super().restore()


def test_pieces_run_once_each_and_in_order_also_when_a_second_runner_joins():
    done = []
    work = Work(lambda n=n: (time.sleep(0.002), done.append(n)) for n in range(40))
    run_gently(work, deadline_s=30.0, escalate_s=0.01)
    assert done == list(range(40))


def test_a_piece_that_fails_ends_the_work_and_its_error_comes_out():
    done = []

    def pieces():
        yield lambda: done.append(1)
        yield lambda: 1 / 0
        yield lambda: done.append(2)

    with pytest.raises(ZeroDivisionError):
        run_gently(Work(pieces()), deadline_s=30.0)
    assert done == [1]


def test_the_deadline_stops_the_work_and_nothing_runs_afterwards():
    done = []
    work = Work(lambda n=n: (time.sleep(0.05), done.append(n)) for n in range(1000))
    with pytest.raises(DeadlineError):
        run_gently(work, deadline_s=0.3, escalate_s=0.1)
    count = len(done)
    time.sleep(0.2)
    assert len(done) == count


def test_a_cancelled_work_ends_without_an_error():
    work = Work(lambda: time.sleep(0.01) for _ in range(10_000))
    timer = threading.Timer(0.1, work.cancel)
    timer.start()
    run_gently(work, deadline_s=30.0)
    timer.join()


def test_only_the_runner_that_is_meant_to_be_gentle_gives_way():
    seen = []
    for is_gentle in (True, False):
        work = Work([lambda: seen.append(os.getpriority(os.PRIO_PROCESS, 0))])
        work.start(is_gentle)
        assert work.wait(30.0)
        work.wait_quiet()
    assert seen == [GENTLE_NICE, 0]
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0


def test_a_runner_gives_way_as_it_is_told():
    seen = []
    work = Work([lambda: seen.append(os.sched_getscheduler(0))], be_idle)
    run_gently(work, 30.0, escalate_s=20.0)
    assert seen == [os.SCHED_IDLE]


def test_a_session_that_stepped_back_comes_up_when_the_work_takes_too_long():
    session = Session()
    run_gently(Work([lambda: time.sleep(0.2)]), 30.0, escalate_s=0.05, session=session)
    assert session.restored == 1
    run_gently(Work([lambda: None]), 30.0, escalate_s=5.0, session=session)
    assert session.restored == 1
