"""Ranks that step together keep off each other's core; a claim ends with its holder."""

import os
import subprocess
import sys
import threading
import uuid

import pytest

from moectl.core.cores import PER_CORE_MAX, CoreClaim

CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="there is one core only")


@pytest.fixture
def table():
    return f"moectl-test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def sleeper():
    """Makes threads that sleep; gives their native ids."""
    end, threads = threading.Event(), []

    def start():
        thread = threading.Thread(target=end.wait)
        thread.start()
        threads.append(thread)
        return thread.native_id

    yield start
    end.set()
    for thread in threads:
        thread.join()


def test_claimants_share_cores_as_evenly_as_can_be(table, sleeper):
    claims = [CoreClaim(sleeper(), table) for _ in range(2 * len(CORES))]
    assert all(claim.take() for claim in claims)
    held = [claim.core for claim in claims]
    assert sorted(held[: len(CORES)]) == CORES
    assert sorted(held[len(CORES) :]) == CORES
    for claim in claims:
        assert os.sched_getaffinity(claim._thread) == {claim.core}
        claim.give_back()
        assert os.sched_getaffinity(claim._thread) == set(CORES)
        claim.give_back()  # harmless


def test_a_claim_that_is_held_is_not_taken_again(table, sleeper):
    claim = CoreClaim(sleeper(), table)
    assert claim.take() and claim.take()
    core = claim.core
    claim.give_back()
    other = CoreClaim(sleeper(), table)
    assert other.take()
    assert core is not None and other.core in CORES


def test_with_every_name_taken_nothing_is_done(table, sleeper):
    claims = [CoreClaim(sleeper(), table) for _ in range(PER_CORE_MAX * len(CORES))]
    assert all(claim.take() for claim in claims)
    late = CoreClaim(sleeper(), table)
    assert not late.take()
    assert os.sched_getaffinity(late._thread) == set(CORES)
    for claim in claims:
        claim.give_back()
    assert late.take()


def test_a_process_that_is_killed_gives_its_core_back(table, sleeper):
    script = (
        "import sys, threading; from moectl.core.cores import CoreClaim;"
        f"claim = CoreClaim(threading.main_thread().native_id, {table!r}); claim.take();"
        "print(claim.core, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        taken = int(other.stdout.readline())
        mine = [CoreClaim(sleeper(), table) for _ in CORES]
        assert all(claim.take() for claim in mine[:-1])
        assert taken not in [claim.core for claim in mine[:-1]]
        other.kill()
        other.wait()
        assert mine[-1].take()
        assert mine[-1].core == taken


def test_a_thread_that_has_ended_claims_nothing(table):
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert not CoreClaim(thread.native_id, table).take()
