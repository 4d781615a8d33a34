"""What does a rank do, step after step, and when does it go over to the next epoch?

Every step begins with a gather of control words over the epoch's group: how many rows each rank
has, and which epoch each is ready to enter. All ranks see the same words, so all of them reach the
same decision without another message: when the least of the ready epochs is a newer one, this step
is the flip. An idle rank takes part in every step; when nobody has rows, all sleep until one has.

    serving --(exchange broken)--> parked --(the next epoch is committed)--> serving
    serving --(flip, and the next epoch has no rank here)--> left

A broken exchange loses nothing: the step is planned again in the next epoch, the KV stays. While
parked there is nobody to agree with, so a committed epoch is entered at once.

This is the engine thread's loop. It never waits for anything but its group, its inbox and (idle)
the doorbells of its group; preparing, sockets and the HMM belong to other threads.
"""

import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from ...core.errors import ExchangeBrokenError, InvariantError, MoectlError, WorkerError
from .comm.base import CONTROL_WORDS
from .engine import Engine, EngineRefused
from .epoch import Epoch
from .inbox import Inbox
from .request import DoneOut, DoneReason, Request, StepResult
from .spent import Accounts

#: An idle group looks again after this time even if no doorbell rang (ranks on other nodes have
#: none here). Chosen: the worst addition to a first token's latency against idle CPU use.
IDLE_S = (0.005, 0.010, 0.020)
#: How long a rank waits in the first gather of an epoch for ranks that have not flipped yet.
FLIP_DEADLINE_S = 60.0
#: Parked or left: how often the loop looks around without being woken.
PARKED_S = 1.0
#: Step times kept for percentiles.
STEPS_KEPT = 512

_EPOCH, _READY_FOR, _ROWS = 0, 1, 2


class LoopState(StrEnum):
    """Where the loop is."""

    WAITING = "waiting"  # no epoch entered yet
    SERVING = "serving"
    PARKED = "parked"
    LEFT = "left"


#: Given the engine that leaves; returns the requests whose end it will tell itself.
HandOver = Callable[[Engine], frozenset[str]]


@dataclass
class Counters:
    """What the loop has done; read by other threads, written by the engine's."""

    steps: int = 0
    tokens_out: int = 0
    tokens_in: int = 0
    steps_crossing: int = 0  # steps in which a row went to another node
    step_ms: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    expert_tokens_LE: np.ndarray | None = None  # computed here in the last whole second


@dataclass(frozen=True)
class Callbacks:
    """Whom the loop tells; all are called on the engine's thread and must return at once."""

    publish: Callable[[StepResult], None]
    live: Callable[
        [Epoch | None, dict[str, float]], None
    ]  # an epoch's first step is done (or broke)
    broken: Callable[[int, str], None]


class StepLoop:
    """The engine's thread. Public methods but `run` may be called from any thread."""

    def __init__(self, inbox: Inbox, callbacks: Callbacks) -> None:
        self.inbox = inbox
        self.counters = Counters()
        self.accounts = Accounts()
        self.state = LoopState.WAITING
        self.is_leaving = False
        self.epoch: Epoch | None = None
        self.engine: Engine | None = None
        self.coming: Engine | None = None  # prepared here, serves from the next epoch on
        self._callbacks = callbacks
        self._lock = threading.Lock()
        self._next: tuple[int, Epoch | None] | None = None  # committed, not entered
        self._hand_over: HandOver | None = None  # takes requests along when this rank leaves
        self._asked: deque[tuple[Callable[[Engine], None], Future[None]]] = deque()
        self._stopping = False
        self._idle_turns = 0
        self._flip: _Flip | None = None
        self._parked_at: float | None = None
        self._second = _Second()

    # ---- any thread ------------------------------------------------------------------------------

    def commit(self, number: int, epoch: Epoch | None, hand_over: HandOver | None = None) -> None:
        """Enter an epoch as soon as every rank of the present one may; None: this rank leaves.

        `hand_over` is then given the engine, and says which requests it will tell their end.
        """
        with self._lock:
            self._next = (number, epoch)
            self._hand_over = hand_over
        self.inbox.wake()

    def abort(self, number: int, reason: str) -> None:
        """A peer of an epoch is lost: end every wait on that epoch's group."""
        for epoch in (self.epoch, self._next[1] if self._next else None):
            if epoch is not None and epoch.number == number:
                epoch.exchange.abort(reason)
        self.inbox.wake()

    def ask(self, task: Callable[[Engine], None], deadline_s: float) -> None:
        """Run a task on the engine's thread between two steps, and wait until it is done.

        Raises:  WorkerError when there is no engine, or it was busy until the deadline.
        """
        done = self.tell(task)
        try:
            done.result(deadline_s)
        except (TimeoutError, CancelledError) as error:
            done.cancel()
            raise WorkerError("the engine took too long for a task between its steps") from error

    def tell(self, task: Callable[[Engine], None]) -> "Future[None]":
        """Run a task on the engine's thread between two steps, and wait for nothing."""
        done: Future[None] = Future()
        self._asked.append((task, done))
        self.inbox.wake()
        return done

    def publish(self, result: StepResult) -> None:
        """Tell tokens and ends of requests; from another thread only once the engine has left."""
        if result.tokens or result.dones:
            self._callbacks.publish(result)

    def stop(self) -> None:
        """Finish the step and leave `run`; safe in a signal handler."""
        self._stopping = True
        self.inbox.wake()

    @property
    def takes_requests(self) -> bool:
        """Whether new requests may be queued here."""
        return self.state in (LoopState.SERVING, LoopState.PARKED) and not (
            self.is_leaving or self._stopping
        )

    @property
    def has_requests(self) -> bool:
        """Whether any request is here; a rank that is leaving gets no more once it has none."""
        engine = self.engine
        return not self.inbox.is_empty or (engine is not None and bool(engine.scheduler.sequences))

    # ---- the engine's thread ---------------------------------------------------------------------

    def run(self) -> None:
        """Step until told to stop; then end every request with "moved"."""
        while not self._stopping:
            self._take_in()
            self._do_asked()
            if self.state is LoopState.SERVING:
                self._step()
            elif self._next is not None:
                self._enter_next(self._parked_at or time.monotonic())
            else:
                self._sleep(PARKED_S, ())
        self._move_all()
        if self.epoch is not None:
            self.epoch.exchange.abort("the rank stops")

    def _do_asked(self) -> None:
        while self._asked:
            task, done = self._asked.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                engine = self.engine or self.coming
                if engine is None:
                    raise WorkerError("this rank has no engine any more")
                task(engine)
                done.set_result(None)
            except MoectlError as error:  # handed to whoever asked
                done.set_exception(error)

    def _step(self) -> None:
        assert self.epoch is not None and self.engine is not None
        epoch, engine = self.epoch, self.engine
        started = time.monotonic()
        try:
            plan = engine.plan()
            rows = plan.row_count if plan else 0
            asked = time.monotonic()
            if plan is not None:
                self.accounts.plan(plan, asked)
            seen = self._gather(epoch, rows)
            self.accounts.exchanged(time.monotonic() - asked)
            if self._flip is not None and self._flip.gathered is None:
                self._flip.gathered = time.monotonic()
            if min(words[_READY_FOR] for words in seen) > epoch.number:
                self._enter_next(started)
                return
            all_rows = [words[_ROWS] for words in seen]
            if not any(all_rows):
                self._note_live(started)
                self.publish(StepResult((), engine.drain_dones()))
                self._idle(epoch)
                return
            epoch.moe.begin_step(all_rows)
            if plan is None:
                engine.run_idle(epoch.moe)
                result = StepResult((), engine.drain_dones())
            else:
                result = engine.run(plan, epoch.moe)
        except ExchangeBrokenError as error:
            self._park(epoch, error.message)
            return
        self._idle_turns = 0
        self.accounts.exchanged(epoch.moe.take_exchanged_s())
        self.publish(result)
        self._count(started, rows, len(result.tokens), epoch)
        self._note_live(started)

    def _gather(self, epoch: Epoch, rows: int) -> list[tuple[int, ...]]:
        words = [0] * CONTROL_WORDS
        committed = self._next
        words[_EPOCH] = epoch.number
        words[_READY_FOR] = committed[0] if committed is not None else epoch.number
        words[_ROWS] = rows
        # The others may still be finishing their last step of the old epoch.
        deadline_s = FLIP_DEADLINE_S if self._flip is not None else None
        seen = epoch.exchange.gather_control(words, deadline_s)
        if any(each[_EPOCH] != epoch.number for each in seen):
            raise InvariantError(f"epochs {[each[_EPOCH] for each in seen]} meet in one group")
        return seen

    def _enter_next(self, started: float) -> None:
        """The flip: references change, nothing else. `started`: when the engine's work paused."""
        with self._lock:
            assert self._next is not None
            number, epoch = self._next
            self._next = None
        self._flip = _Flip(number, started, self.counters.steps)
        self._parked_at = None
        self.epoch = epoch
        if epoch is None:
            self.state = LoopState.LEFT
            hand_over, self._hand_over = self._hand_over, None
            going = hand_over(self.engine) if hand_over and self.engine else frozenset()
            self._move_all(going)
            self.engine = None
            self._note_live(started)
            return
        if epoch.engine is not None:
            self.engine, epoch.engine = epoch.engine, None
        if self.engine is not None and epoch.limits is not None:
            self.engine.take_settings(epoch.limits, epoch.threads)
            self.coming = None
        self.state = LoopState.SERVING
        self._second = _Second()
        self._idle_turns = 0

    def _note_live(self, step_started: float) -> None:
        """The first step of an epoch is done by all ranks: say so, with the flip's figures."""
        flip, self._flip = self._flip, None
        if flip is None:
            return
        gathered = flip.gathered or step_started
        figures = {
            "pause_ms": (gathered - flip.started) * 1e3,
            "first_step_ms": (time.monotonic() - step_started) * 1e3,
            "flip_step": float(flip.step),
            "flip_at": time.time(),
        }
        self._callbacks.live(self.epoch, figures)

    def _park(self, epoch: Epoch, reason: str) -> None:
        epoch.exchange.abort(reason)  # so that no peer waits for a rank that does not come
        self.state = LoopState.PARKED
        self._parked_at = time.monotonic()
        self._note_live(self._parked_at)  # entered, even if it broke at once: there is no way back
        print(f"epoch {epoch.number} broke: {reason}", file=sys.stderr, flush=True)
        self._callbacks.broken(epoch.number, reason)

    def _idle(self, epoch: Epoch) -> None:
        wait_s = IDLE_S[min(self._idle_turns, len(IDLE_S) - 1)]
        self._idle_turns += 1
        self._sleep(wait_s, epoch.exchange.doorbells())

    def _sleep(self, wait_s: float, doorbells: Sequence[int]) -> None:
        """Until the inbox wakes us, a peer enters the next gather, or the time is over."""
        poller = select.poll()
        for fd in (self.inbox.wake_fd, *doorbells):
            poller.register(fd, select.POLLIN)
        poller.poll(wait_s * 1e3)
        self.inbox.drain()

    # ---- requests --------------------------------------------------------------------------------

    def _take_in(self) -> None:
        submits, cancels = self.inbox.take()
        if not submits and not cancels:
            return
        refused = [done for request in submits if (done := self._submit(request)) is not None]
        for request_id in cancels:
            if self.engine is not None:
                self.engine.cancel(request_id)
        if refused:
            self.publish(StepResult((), tuple(refused)))

    def _submit(self, request: Request) -> DoneOut | None:
        is_in = self.state in (LoopState.SERVING, LoopState.PARKED)
        if self.engine is None or self.is_leaving or not is_in:
            return DoneOut(request.id, DoneReason.MOVED)
        try:
            self.engine.submit(request)
        except EngineRefused as error:
            return DoneOut(request.id, f"refused:{error}")
        self.counters.tokens_in += len(request.prompt_ids)
        return None

    def _move_all(self, going: frozenset[str] = frozenset()) -> None:
        """Tell every request here to go on elsewhere, but those that are being handed over."""
        submits, _ = self.inbox.take()
        dones = [DoneOut(request.id, DoneReason.MOVED) for request in submits]
        if self.engine is not None:
            for request_id in set(self.engine.scheduler.sequences) - going:
                self.engine.cancel(request_id, DoneReason.MOVED)
            dones += self.engine.drain_dones()
        self.publish(StepResult((), tuple(dones)))

    # ---- figures ---------------------------------------------------------------------------------

    def _count(self, started: float, rows: int, tokens: int, epoch: Epoch) -> None:
        counters, now = self.counters, time.monotonic()
        counters.steps += 1
        counters.tokens_out += tokens
        counters.step_ms.append((now - started) * 1e3)
        if epoch.sent_across():
            counters.steps_crossing += 1
        per_second = self._second.turn(now, epoch.moe.computed_LE)
        if per_second is not None:
            counters.expert_tokens_LE = per_second


@dataclass
class _Flip:
    """A flip that has begun: to which epoch, since when the engine pauses, after how many steps."""

    number: int
    started: float
    step: int
    gathered: float | None = None  # when all ranks had met in the new group


class _Second:
    """Cuts growing counts into whole seconds."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counts: np.ndarray | None = None

    def turn(self, now: float, counts_LE: np.ndarray) -> np.ndarray | None:
        """What was counted in the second that just ended, or None while one goes on."""
        if self._counts is not None and now - self._since < 1.0:
            return None
        before = self._counts if self._counts is not None else np.zeros_like(counts_LE)
        self._counts, self._since = counts_LE.copy(), now
        return self._counts - before
