"""Copies past the caches move the same bytes as memmove, and nothing beside them."""

import ctypes
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.core.priority import GENTLE_NICE, be_gentle, can_leave_idle
from moectl.memory import stream

ROOM = 3 << 20
GUARD = 256
needs_native = pytest.mark.skipif(stream.extension is None, reason="no compiler here")


@pytest.fixture(scope="module")
def pair():
    source = ctypes.create_string_buffer(os.urandom(ROOM), ROOM)
    return source, ctypes.create_string_buffer(ROOM)


def copied(pair, at, to, size):
    """What stands in the target around a copy of `size` bytes."""
    source, target = pair
    ctypes.memset(target, 0xAA, ROOM)
    stream.copy_bytes(ctypes.addressof(target) + to, ctypes.addressof(source) + at, size)
    return target.raw


@given(
    at=st.integers(0, 200),
    to=st.integers(GUARD, GUARD + 200),
    size=st.one_of(
        st.integers(0, 3000),
        st.integers(stream.STREAM_BYTES_MIN - 3, stream.STREAM_BYTES_MIN + 700),
    ),
)
def test_the_bytes_are_those_of_memmove_and_no_others_change(pair, at, to, size):
    found = copied(pair, at, to, size)
    assert found[to : to + size] == pair[0].raw[at : at + size]
    assert found[:to] == b"\xaa" * to
    assert found[to + size :] == b"\xaa" * (ROOM - to - size)


def test_without_the_extension_the_reference_copies(pair, monkeypatch):
    monkeypatch.setattr(stream, "extension", None)
    size = stream.STREAM_BYTES_MIN + 5
    assert copied(pair, 1, GUARD, size)[GUARD : GUARD + size] == pair[0].raw[1 : 1 + size]
    assert stream.backend_name() == "reference"


class Watched:
    """An extension that notes at which level it was asked to copy."""

    def __init__(self):
        self.at_idle = []

    def copy(self, target, source, size, at_idle):
        self.at_idle.append(at_idle)


@needs_native
def test_a_nice_thread_is_back_at_its_level_after_a_copy(pair):
    found = []

    def task():
        be_gentle()
        copied(pair, 0, GUARD, stream.STREAM_BYTES_MIN)
        found.append((os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)))

    thread = threading.Thread(target=task)
    thread.start()
    thread.join()
    assert found == [(os.SCHED_OTHER, GENTLE_NICE)]


@pytest.mark.parametrize("may_return", [True, False])
def test_only_who_may_come_back_copies_at_idle_priority(pair, monkeypatch, may_return):
    watched = Watched()
    monkeypatch.setattr(stream, "extension", watched)
    monkeypatch.setattr(stream, "can_leave_idle", lambda: may_return)
    copied(pair, 0, GUARD, stream.STREAM_BYTES_MIN)  # this thread is not nice

    def task():
        be_gentle()
        copied(pair, 0, GUARD, stream.STREAM_BYTES_MIN)

    thread = threading.Thread(target=task)
    thread.start()
    thread.join()
    assert watched.at_idle == [False, may_return]


def test_asking_leaves_the_asker_where_it_was():
    can_leave_idle.cache_clear()
    assert can_leave_idle() in (True, False)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
