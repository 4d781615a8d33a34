"""In which order does a worker live through transitions, and what does it tell about them?

    prepare -> prepared          reserve, copy, map, meet; serving goes on
    commit  -> committed         pages become lasting, the engine flips when all ranks can
    retire  -> retired           the old epoch's group, window and pages go
    forfeit -> forfeited         everything of `prepare` is undone

Requests are taken from any thread and worked off one after another on a thread of its own; each
ends with one event. All are idempotent: a new agent may ask again and gets the same event again.
The engine's thread only hears "this epoch is committed" and reports when it is live.
"""

import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

from ...core.errors import MoectlError, WorkerError
from ...core.plan import TransitionKind
from ...core.priority import be_gentle
from ...core.records import TransitionRecord
from ...memory.hmm.client import HmmClient
from .context import WorkerContext
from .epoch import Epoch
from .gently import beside
from .kv_room import KvRoom, try_grow
from .moving import Moving
from .prepare import Preparation
from .release import release_device, retire_experts
from .serve import DataServer
from .steps import LoopState, StepLoop

#: Requests waiting to be worked off. Chosen: an agent sends a handful per transition.
QUEUE_MAX = 64

Tell = Callable[[dict[str, Any]], None]


class Lifecycle:
    """Transitions of one worker."""

    def __init__(
        self, context: WorkerContext, loop: StepLoop, data: DataServer, tell: Tell
    ) -> None:
        self._context, self._loop, self._tell = context, loop, tell
        self._moving = Moving(context, loop, data, lambda: self._room)
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_MAX)
        self._lock = threading.Lock()
        self._next: Preparation | None = None  # asked for, preparing or prepared
        self._live: Preparation | None = None
        self._old: list[Preparation] = []  # flipped away from, not retired
        self._attached: Preparation | None = None  # the one that mapped shared weights and KV
        self._room: KvRoom | None = None  # KV of the engine that serves, once it does
        self._said: dict[tuple[str, str], dict[str, Any]] = {}  # last event per (event, operation)
        self._committing: Preparation | None = None  # the engine was told, and has not flipped
        self.prepared_operation = ""
        self.epoch = -1  # the last epoch that is known to be live
        self._thread = threading.Thread(target=self._work, name="lifecycle", daemon=True)

    def start(self) -> None:
        """Begin to work off requests."""
        self._thread.start()

    # ---- requests, from any thread; each raises WorkerError when it makes no sense now ----------

    def prepare(self, record: TransitionRecord) -> None:
        """Get ready for a transition's new epoch."""
        operation = record.operation_id
        with self._lock:
            if self._repeat("prepared", operation) or self._is_next(operation):
                return
            if self._next is not None:
                raise WorkerError(f"operation {self._next.record.operation_id} is prepared here")
            preparation = Preparation(self._context, record, self._attached is not None)
            preparation.room = self._room
            self._next = preparation
            if preparation.rank is None:
                self._loop.is_leaving = True  # what it lends of its KV is no room for new requests
        self._put(lambda: self._prepare(preparation))

    def commit(self, operation: str) -> None:
        """Enter the prepared epoch with all ranks."""
        with self._lock:
            if operation == self._committing_operation() or self._repeat("committed", operation):
                return
            if not self._is_next(operation) or self.prepared_operation != operation:
                raise WorkerError(f"operation {operation} is not prepared here")
            preparation = self._next
        assert preparation is not None
        self._put(lambda: self._commit(preparation))

    def forfeit(self, operation: str) -> None:
        """Undo what was prepared; an unknown operation has nothing to undo."""
        with self._lock:
            live = self._live.record.operation_id if self._live is not None else ""
            if operation in (live, self._committing_operation()):
                raise WorkerError(f"operation {operation} is committed: it cannot be forfeited")
            if self._repeat("forfeited", operation):
                return
            preparation = self._next if self._is_next(operation) else None
        if preparation is not None:
            # On a thread of its own, so that the control server answers on meanwhile.
            threading.Thread(target=preparation.cancel, name="cancel", daemon=True).start()
        self._put(lambda: self._forfeit(operation, preparation))

    def retire(self, operation: str) -> None:
        """Give back what only older epochs needed."""
        with self._lock:
            if self._repeat("retired", operation):
                return
        self._put(lambda: self._retire(operation))

    def give_back(self, pages: int) -> None:
        """KV that has grown is to make room for another model, as far as it is above its share."""
        self._put(lambda: self._make_room(pages))

    def peer_lost(self, epoch: int) -> None:
        """Somebody of an epoch's group is gone."""
        self._loop.abort(epoch, "a peer of the group is lost")
        with self._lock:
            ahead = [self._next, self._committing]
        for preparation in ahead:
            prepared = preparation.epoch if preparation is not None else None
            if prepared is not None and prepared.number == epoch:
                prepared.exchange.abort("a peer of the group is lost")

    # ---- from the engine's thread ----------------------------------------------------------------

    def on_live(self, epoch: Epoch | None, figures: dict[str, float]) -> None:
        """The flip is done everywhere."""
        with self._lock:
            committing, self._committing = self._committing, None
        if committing is not None:
            self._put(lambda: self._after_flip(committing, figures))

    def on_broken(self, epoch: int, reason: str) -> None:
        """The group of the epoch in force broke; the engine is parked."""
        self._tell({"event": "broken", "epoch": epoch, "error": reason})

    # ---- the thread of this object ---------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                task()
            except Exception as error:  # the thread's top: a bug in one transition is told as such
                import traceback

                traceback.print_exception(error)

    def _prepare(self, preparation: Preparation) -> None:
        operation = preparation.record.operation_id
        try:
            preparation.run()
            self._expect(preparation)
        except Exception as error:  # whatever it was: undo it, say so, and serve on
            _log(f"operation {operation} could not be prepared", error)
            self._expect_nothing()
            preparation.forfeit()
            self._undo_room(preparation)
            with self._lock:
                self._next = None
            self._say("prepared", operation, error=_text(error))
            return
        if preparation.is_cancelled:  # the forfeit that follows says the rest
            return
        with self._lock:
            self.prepared_operation = operation
        self._say("prepared", operation, preparation.figures)

    def _commit(self, preparation: Preparation) -> None:
        if self._next is not preparation:
            return  # said twice: the first one is under way
        record = preparation.record
        try:
            preparation.commit_pages()
        except MoectlError as error:
            # The decision is made and the pages are mapped: serve, the HMM forgets them.
            _log("committing pages failed", error)
        with self._lock:
            self._next = None
            self._committing = preparation
        self._loop.commit(record.new.epoch, preparation.epoch, self._moving.hand_over())
        if record.kind is TransitionKind.HEAL and record.old is not None:
            # Nobody can agree with a dead rank: leave the old group at once.
            self._loop.abort(record.old.epoch, "a heal commits")

    def _after_flip(self, preparation: Preparation, figures: dict[str, float]) -> None:
        operation = preparation.record.operation_id
        with self._lock:
            if self._live is not None:
                self._old.append(self._live)
            self._live = preparation
            if preparation.attachment is not None:
                self._attached = preparation
                room = KvRoom(self._context, preparation.attachment, self._loop.ask)
                self._room = room
        try:
            preparation.forget_meeting()
        except MoectlError as error:
            _log("dropping the channel failed", error)
        self._say("committed", operation, figures | self._moving.after_flip())
        with self._lock:
            self.prepared_operation = ""
            self.epoch = preparation.record.new.epoch

    def _forfeit(self, operation: str, preparation: Preparation | None) -> None:
        if preparation is not None:
            self._expect_nothing()
            preparation.forfeit()
            self._undo_room(preparation)
            with self._lock:
                if self._next is preparation:
                    self._next = None
                    self.prepared_operation = ""
                if preparation.rank is None:
                    self._loop.is_leaving = False
                self._said.pop(("prepared", operation), None)
        self._say("forfeited", operation)

    def _retire(self, operation: str) -> None:
        self._moving.end()
        live = self._live
        if live is None or live.record.operation_id != operation:
            self._say("retired", operation, error="that operation's epoch is not in force here")
            return
        try:
            # Nobody waits for these pages, and every rank gives some back at the same time.
            freed = beside(lambda: self._give_back(live), "retire", be_gentle).result()
        except MoectlError as error:
            _log("retiring failed", error)
            self._say("retired", operation, error=_text(error))
            return
        figures = {"pages_freed": float(freed)}
        self._say("retired", operation, figures)

    def _give_back(self, live: Preparation) -> int:
        has_left = self._loop.state is LoopState.LEFT
        old, self._old = self._old, []
        for each in old:
            if each.epoch is not None:
                each.epoch.exchange.close()
            if each is self._attached and not has_left:
                # Its HMM connection and its KV and shared windows stay; its experts go.
                assert each.shadow is not None
                each.shadow.close()
                each.forget_epoch()
            else:
                each.close_windows()
        if self._attached is not None and has_left:
            self._attached.close_windows()
            self._attached, self._room = None, None
        launch = self._context.launch
        with self._context.connect("retire") as hmm:
            if has_left:
                return release_device(hmm, launch.model, launch.device)
            freed = retire_experts(hmm, launch.model, launch.device, live.record.new.epoch)
            self._claim(hmm, live)
            self._grow_kv(hmm, freed)
            return freed

    # ---- parts -----------------------------------------------------------------------------------

    def _expect(self, preparation: Preparation) -> None:
        """The next epoch is ready here: requests of ranks that leave may come and go now."""
        if preparation.epoch is not None:
            self._loop.coming = preparation.epoch.engine
        self._moving.prepare(preparation.record, lambda: preparation.is_cancelled)

    def _expect_nothing(self) -> None:
        self._moving.end()
        self._loop.coming = None

    def _claim(self, hmm: HmmClient, live: Preparation) -> None:
        """Count on what the placement in force needs, and no more on what its change needed."""
        if live.rank is None:
            return
        launch, slots = self._context.launch, sum(1 for _ in live.record.new.experts_on(live.rank))
        claims = self._context.claims(hmm.device(launch.device).page_bytes, slots)
        hmm.set_claims(launch.device, claims, launch.model)

    def _grow_kv(self, hmm: HmmClient, pages: int) -> None:
        """Pages that experts gave up become KV; serving goes on as well without."""
        if self._room is None or not pages:
            return
        _, why = try_grow(self._room, hmm, pages)
        if why:
            print(f"KV did not grow by {pages} pages: {why}", file=sys.stderr, flush=True)

    def _make_room(self, pages: int) -> None:
        if self._room is None:
            return
        try:
            with self._context.connect("make room") as hmm:
                given = self._room.give_back(hmm, pages)
            print(f"KV gave back {given} pages for another model", file=sys.stderr, flush=True)
        except MoectlError as error:
            _log("KV could not give pages back", error)

    def _undo_room(self, preparation: Preparation) -> None:
        """What KV gave up for a forfeited transition is KV again."""
        pages, preparation.kv_pages_given = preparation.kv_pages_given, 0
        if not pages:
            return
        try:
            with self._context.connect("forfeit") as hmm:
                self._grow_kv(hmm, pages)
        except MoectlError as error:
            _log("KV stays smaller", error)

    def _is_next(self, operation: str) -> bool:
        return self._next is not None and self._next.record.operation_id == operation

    def _committing_operation(self) -> str | None:
        committing = self._committing
        return committing.record.operation_id if committing is not None else None

    def _put(self, task: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(task)
        except queue.Full:
            raise WorkerError(f"{QUEUE_MAX} requests wait already") from None

    def _repeat(self, event: str, operation: str) -> bool:
        """Say an event again if it was said; the one who asks may have missed it."""
        said = self._said.get((event, operation))
        if said is None or said.get("error"):
            return False
        self._tell(said)
        return True

    def _say(
        self, event: str, operation: str, figures: dict[str, float] | None = None, error: str = ""
    ) -> None:
        message = {
            "event": event,
            "operation_id": operation,
            "ok": not error,
            "error": error,
            "figures": figures or {},
        }
        self._said[event, operation] = message
        while len(self._said) > QUEUE_MAX:
            self._said.pop(next(iter(self._said)))
        self._tell(message)


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, MoectlError) else f"{type(error).__name__}: {error}"


def _log(what: str, error: BaseException) -> None:
    print(f"{what}: {_text(error)}", file=sys.stderr, flush=True)
