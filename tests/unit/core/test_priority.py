"""A process gives way and comes back without a privilege; only its own session moves."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from moectl.core.priority import (
    GENTLE_NICE,
    LAST_NICE,
    PRESSING_S,
    PROMPT_SLICE_NS,
    Bystanders,
    SessionPriority,
    be_gentle,
    be_prompt,
    put_session,
)

SESSION = Path("/proc/self/autogroup")

ASK = """
import ctypes, os
from pathlib import Path
from moectl.core.priority import SessionPriority
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: else its files in /proc stay root's
level = lambda: (Path("/proc/self/autogroup").read_text().split() or ["of no group"])[-1]
session = SessionPriority()
print(session.lower(), level(), session.restore(), level())
"""


def asked(**options):
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not SESSION.exists(), reason="this kernel does not group tasks by session")
def test_a_session_steps_back_and_comes_up_again_without_privileges():
    assert asked(start_new_session=True) == ["True", str(LAST_NICE), "True", "0"]


@pytest.mark.skipif(not SESSION.exists(), reason="this kernel does not group tasks by session")
def test_a_process_that_does_not_lead_its_session_leaves_it_alone():
    before = SESSION.read_text()
    assert asked()[0] == "False"
    assert SESSION.read_text() == before


def test_a_kernel_without_sessions_levels_is_no_error(tmp_path):
    session = SessionPriority(tmp_path / "missing" / "autogroup")
    assert not session.lower()
    assert session.restore()


def test_a_level_that_cannot_be_taken_back_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpid())
    monkeypatch.setattr("moectl.core.priority.RESTORE_PAUSE_S", 0.0)
    place = tmp_path / "autogroup"
    session = SessionPriority(place)
    assert session.lower()
    assert place.read_text() == str(LAST_NICE)
    place.unlink()
    place.mkdir()
    assert not session.restore()
    place.rmdir()
    assert session.restore()
    assert place.read_text() == "0"


def in_a_thread(task):
    found = []
    thread = threading.Thread(target=lambda: found.append(task()))
    thread.start()
    thread.join()
    return found[0]


def own_slice_ms():
    lines = Path("/proc/thread-self/sched").read_text().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("se.slice")) / 1e6


def kernel():
    return tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))


@pytest.mark.skipif(kernel() < (6, 12), reason="custom slices came with Linux 6.12")
@pytest.mark.skipif(
    not Path("/proc/self/sched").exists(), reason="this kernel does not tell slices"
)
def test_a_prompt_thread_has_short_slices_and_keeps_its_level():
    def ask():
        be_gentle()
        was_taken = be_prompt()
        return was_taken, own_slice_ms(), os.getpriority(os.PRIO_PROCESS, 0)

    was_taken, slice_ms, nice = in_a_thread(ask)
    assert nice == GENTLE_NICE
    assert not was_taken or slice_ms == PROMPT_SLICE_NS / 1e6


def test_bystanders_come_up_for_what_presses_and_stand_back_some_time_after_it():
    levels, now = [], [100.0]
    bystanders = Bystanders(
        lambda: (1, 2), lambda leader, nice: levels.append((leader, nice)), lambda: now[0]
    )
    bystanders.look(is_pressing=False)
    assert levels == []  # they were started low
    bystanders.look(is_pressing=True)
    bystanders.look(is_pressing=True)
    assert levels == [(1, 0), (2, 0)]
    now[0] += PRESSING_S / 2
    bystanders.look(is_pressing=False)
    assert len(levels) == 2
    now[0] += PRESSING_S
    bystanders.look(is_pressing=False)
    bystanders.look(is_pressing=False)
    assert levels[2:] == [(1, GENTLE_NICE), (2, GENTLE_NICE)]


@pytest.mark.skipif(not SESSION.exists(), reason="this kernel does not group tasks by session")
def test_only_the_leader_of_a_session_is_put_to_another_level():
    words = [sys.executable, "-c", "input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as child:
        level = Path(f"/proc/{child.pid}/autogroup")
        if not level.read_text():
            pytest.skip("this session is in no group")
        put_session(child.pid, GENTLE_NICE)
        assert level.read_text().split()[-1] == str(GENTLE_NICE)
        child.communicate(b"\n")
    put_session(child.pid, 0)  # gone: nothing happens
