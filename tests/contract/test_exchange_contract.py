"""Every Exchange keeps the same promises, in real processes: shared memory, gloo and both."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

KINDS = ("solo", "shm", "gloo", "mixed-2+2", "mixed-2+1")
SIZES = {"solo": 1, "shm": 4, "gloo": 3, "mixed-2+2": 4, "mixed-2+1": 3}
PROGRAM = Path(__file__).with_name("exchange_ranks.py")


class Program:
    """The program that forks real ranks of any kind, one scenario at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, kind: str, scenario: str) -> list[str]:
        """One result per rank."""
        assert self._process.stdin and self._process.stdout
        print(kind, scenario, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@dataclass
class Ranks:
    """Ranks of one kind."""

    kind: str
    program: Program

    @property
    def size(self) -> int:
        return SIZES[self.kind]

    def run(self, scenario: str) -> list[str]:
        return self.program.run(self.kind, scenario)


@pytest.fixture(scope="module")
def program():
    running = Program()
    yield running
    running.close()


@pytest.fixture(params=KINDS)
def ranks(request, program):
    return Ranks(request.param, program)


def need_peers(ranks):
    if ranks.size == 1:
        pytest.skip("a group of one has no peer to wait for")


def test_a_gather_returns_the_words_of_every_rank_in_rank_order(ranks):
    assert ranks.run("gather") == ["ok"] * ranks.size


def test_every_part_arrives_unchanged_whatever_its_length(ranks):
    assert ranks.run("all_to_all") == ["ok"] * ranks.size


def test_an_exchange_of_nothing_returns_nothing(ranks):
    assert ranks.run("empty") == ["ok"] * ranks.size


def test_an_abort_ends_the_waits_of_the_peers_long_before_their_deadline(ranks):
    need_peers(ranks)
    assert ranks.run("abort_by_peer") == ["broken"] * ranks.size


def test_an_abort_from_another_thread_ends_the_own_wait_and_says_why(ranks):
    assert ranks.run("abort_from_thread")[0] == "broken True"


def test_a_peer_that_stays_away_breaks_the_group_at_the_deadline(ranks):
    need_peers(ranks)
    assert ranks.run("deadline") == ["broken"] * ranks.size


def test_a_killed_peer_breaks_the_group_of_the_survivors(ranks):
    need_peers(ranks)
    assert ranks.run("killed") == ["broken"] * (ranks.size - 1) + ["died of signal 9"]


@pytest.mark.parametrize("end", ["abort", "death"])
def test_the_end_of_a_call_that_gloo_has_lost_is_noticed_all_the_same(program, end):
    got = Ranks("gloo", program).run(f"unheard_{end}")
    assert got == ["broken", "died of signal 9", "died of signal 9"]


def test_parts_larger_than_was_agreed_are_refused_before_anything_is_sent(ranks):
    need_peers(ranks)
    assert ranks.run("too_large") == ["EngineError"] * ranks.size


def test_rows_split_over_copies_have_the_bits_of_one_rank_that_holds_every_expert(ranks):
    assert ranks.run("copies") == [f"computed as one of several: {ranks.size > 1}"] * ranks.size
