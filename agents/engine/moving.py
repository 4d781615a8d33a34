"""Which part does this rank play when requests move: does it hand over, take over, or neither?

The lifecycle's thread calls one method per phase; both sides work on threads of their own.
"""

import sys
import time
from collections.abc import Callable

from ...core.errors import MoectlError
from ...core.plan import leaving_devices
from ...core.records import TransitionRecord
from .context import WorkerContext
from .depart import Departure
from .kv_room import KvRoom
from .land import Ground, Landing, still_of
from .serve import DataServer
from .steps import HandOver, LoopState, StepLoop

#: What a PREPARE keeps of its time for the rest when copying ahead takes long.
RESERVE_S = 3.0
#: How long a flip's answer waits for the hand-over. Chosen: below COMMIT's own deadline.
HAND_OVER_S = 10.0


class Moving:
    """One worker's part in the moves of requests, transition after transition."""

    def __init__(
        self,
        context: WorkerContext,
        loop: StepLoop,
        data: DataServer,
        room: Callable[[], KvRoom | None],
    ) -> None:
        self._ground = Ground(context, loop, data, still_of(room))
        self._landing: Landing | None = None
        self._departure: Departure | None = None

    def prepare(self, record: TransitionRecord, is_cancelled: Callable[[], bool]) -> None:
        """This rank is ready for `record`: open the door, or copy ahead until little is left.

        Where the ranks cannot meet, requests are replayed: no reason not to go on.
        """
        try:
            self._prepare(record, is_cancelled)
        except MoectlError as error:
            print(f"requests will be replayed: {error.message}", file=sys.stderr, flush=True)

    def _prepare(self, record: TransitionRecord, is_cancelled: Callable[[], bool]) -> None:
        loop = self._ground.loop
        if not leaving_devices(record.old, record.new):
            return
        if record.new.rank_of(self._ground.context.device) is not None:
            self._landing = Landing(self._ground, record)
            self._landing.open()
        elif loop.state in (LoopState.SERVING, LoopState.PARKED) and loop.has_requests:
            self._departure = departure = Departure(self._ground, record)
            departure.start()
            until = record.deadline_at - RESERVE_S - time.time() + time.monotonic()
            while not departure.wait_ahead(0.05):
                if is_cancelled() or time.monotonic() > until:
                    return

    def hand_over(self) -> HandOver | None:
        """What the engine's thread gives its requests to at the flip; None: it stays."""
        return self._departure.take if self._departure is not None else None

    def after_flip(self) -> dict[str, float]:
        """Wait until this rank's requests are handed over; figures of it."""
        departure, self._departure = self._departure, None
        return departure.finish(HAND_OVER_S) if departure is not None else {}

    def end(self) -> None:
        """Retired or forfeited: what was under way and did not arrive is dropped."""
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None
        if self._landing is not None:
            self._landing.close()
            self._landing = None
