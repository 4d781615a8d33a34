"""Work beside a serving engine runs in order, stops when told, and never strands an error."""

import os
import threading
import time

import pytest

from moectl.agents.engine import gently
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


def spin(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_gentle_runner_rests_between_pieces_and_not_after_the_last(monkeypatch):
    monkeypatch.setattr(gently, "REST", 10.0)
    began = time.monotonic()
    run_gently(Work([lambda: spin(0.02), lambda: spin(0.02)]), 30.0, escalate_s=20.0)
    took = time.monotonic() - began
    assert took >= 0.2  # ten times the first piece; no upper bound: cores may be busy
    began = time.monotonic()
    run_gently(Work([lambda: spin(0.02)]), 600.0, escalate_s=300.0)
    monkeypatch.setattr(gently, "REST", 1e6)
    run_gently(Work([lambda: spin(0.02)]), 600.0, escalate_s=300.0)
    assert time.monotonic() - began < 300.0  # a rest after it would have been hours


def test_who_hurries_and_who_cancels_ends_a_rest(monkeypatch):
    monkeypatch.setattr(gently, "REST", 1e6)
    done = []
    pieces = [lambda n=n: (spin(0.001), done.append(n)) for n in range(3)]
    run_gently(Work(iter(pieces)), 60.0, escalate_s=0.05)
    assert done == [0, 1, 2]
    work = Work(iter(pieces))
    work.start(is_gentle=True)
    time.sleep(0.05)
    work.cancel()
    work.wait_quiet()  # returns
    assert done == [0, 1, 2, 0]


def test_a_prompt_runner_never_rests(monkeypatch):
    monkeypatch.setattr(gently, "REST", 1e6)
    done = []
    work = Work(lambda n=n: (spin(0.001), done.append(n)) for n in range(3))
    run_gently(work, 60.0, escalate_s=0.0)
    assert done == [0, 1, 2]
