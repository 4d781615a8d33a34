"""How is heavy work done beside a serving engine without slowing it? On throw-away threads.

They take what a core has left, and little of one that others want, until that takes too long.

A runner takes pieces from one iterator, so that a second runner at normal priority can join when
the first gets no time: a thread without privileges cannot take its level back, but nobody has to
wait for it once its piece is done. The engine's thread never runs a piece.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from ...core.errors import DeadlineError
from ...core.priority import SessionPriority, be_gentle, lift_thread

T = TypeVar("T")
Piece = Callable[[], None]

#: Gentleness ends when the pieces are not done by then. Chosen: above what they mostly take where
#: two readers fill two cores (half a second to one), and a device is free within two seconds.
#: Rests between pieces were tried: each time a thread comes back it may hold a core for a tick,
#: whatever its level, so the same work costs more tokens than in one go.
ESCALATE_S = 1.5


def run_gently(
    work: "Work",
    deadline_s: float,
    escalate_s: float = ESCALATE_S,
    session: SessionPriority | None = None,
) -> None:
    """Run every piece, in order, gently first and at normal priority after `escalate_s`.

    A `session` that has stepped back comes up again then. Raises the first piece's error, or
    DeadlineError; then nothing of the work runs any more.
    """
    work.start(is_gentle=escalate_s > 0)
    if not work.wait(min(escalate_s, deadline_s)):
        work.hurry()
        if session is not None:
            session.restore()
        if not work.wait(deadline_s - escalate_s):
            work.cancel()
            work.wait_quiet()
            raise DeadlineError(f"preparing did not end within {deadline_s:.1f} s")
    work.wait_quiet()
    work.raise_error()


def beside(
    task: Callable[[], T], name: str, give_way: Callable[[], None] | None = None
) -> "Future[T]":
    """Run a task on a thread of its own, at normal priority unless told how to `give_way`.

    Normal is for meetings, which mostly wait: gloo's threads inherit from the one that forms a
    group.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            if give_way is not None:
                give_way()
            future.set_result(task())
        except BaseException as error:  # handed to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Work:
    """Pieces shared by runners; at most one runs at a time, so pieces need no locks."""

    def __init__(self, pieces: Iterable[Piece], give_way: Callable[[], None] = be_gentle) -> None:
        """`give_way` lowers the thread that calls it: how runners that are gentle begin."""
        self._give_way = give_way
        self._pieces: Iterator[Piece] = iter(pieces)
        self._turn = threading.Lock()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self, is_gentle: bool) -> None:
        """Add a runner."""
        thread = threading.Thread(target=self._run, args=(is_gentle,), name="prepare", daemon=True)
        self._threads.append(thread)
        thread.start()

    def hurry(self) -> None:
        """Go on at normal priority: lift the runners where that is allowed, and add one that is."""
        for thread in self._threads:
            if thread.native_id is not None:
                lift_thread(thread.native_id)
        self.start(is_gentle=False)

    def wait(self, timeout_s: float) -> bool:
        """Whether all pieces are done (or one failed) within the time."""
        return self._done.wait(max(timeout_s, 0.0))

    def cancel(self) -> None:
        """No further piece is started."""
        self._done.set()

    def wait_quiet(self) -> None:
        """Wait until no runner touches anything any more: at most the piece in progress."""
        for thread in self._threads:
            thread.join()

    def raise_error(self) -> None:
        """Raise what a piece raised."""
        if self._error is not None:
            raise self._error

    def _run(self, is_gentle: bool) -> None:
        if is_gentle:
            self._give_way()
        while not self._done.is_set():
            with self._turn:
                if self._done.is_set():
                    return
                try:
                    piece = next(self._pieces, None)
                    if piece is None:
                        self._done.set()
                        return
                    piece()
                except BaseException as error:  # handed to whoever waits
                    self._error = error
                    self._done.set()
            time.sleep(0)  # lets another runner have the next turn
