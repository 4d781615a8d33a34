"""How does a rank that leaves hand its requests over with their KV? On a thread of its own.

    PREPARE   every request gets a receiver (moves.py); its whole blocks, which never change any
              more, are copied there while it goes on decoding here
    flip      the engine's thread gives away what stands; the blocks that are missing and the state
              go over, the receiver goes on, and the gateway is told where: "moved:<address> <key>"

A request of which anything fails, or for which there is no room, is told "moved" alone: its gateway
replays it. Nothing here can hold up a flip: the engine's thread takes a snapshot and goes.
"""

import sys
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ...core.errors import MoectlError, WorkerError
from ...core.plan import leaving_devices
from ...core.records import TransitionRecord
from .engine import Engine
from .land import ENGINE_S, Ground
from .moves import MovePlan, Room, Standing, plan_moves
from .receivers import LOOK_S, Link, Tally, reach
from .request import DoneOut, DoneReason, Request, StepResult
from .submit import message_of

#: Bytes copied per message: what the locks of both ranks are held for.
PIECE_BYTES = 4 * 1024 * 1024
#: Copying ahead works half of the time, so that serving goes on, until it has taken so long.
GENTLE_S = 2.0
#: Blocks that may be left to copy for the flip, per request: it goes on meanwhile.
BEHIND_MAX = 2


@dataclass
class _Move:
    """A request on its way: its id there, and how many leading blocks are there already."""

    key: str
    link: Link
    starts: int
    held: int = 0
    copied: int = 0


@dataclass(frozen=True)
class _Parting:
    """A request that has stopped here, as it goes over."""

    request: Request  # with everything generated
    standing: Standing


class Departure:
    """One transition in which this rank leaves."""

    def __init__(self, ground: Ground, record: TransitionRecord) -> None:
        self._ground, self._record = ground, record
        leavers = leaving_devices(record.old, record.new)
        self._turn = leavers.index(ground.context.device)
        self._block_tokens = ground.context.limits.block_tokens
        self._links: dict[str, Link] = {}
        self._rooms: tuple[Room, ...] = ()
        self._moves: dict[str, _Move] = {}
        self._number = 0
        self._seen_changes = 0  # of the blocks' numbers, when requests were last looked at
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._partings: list[_Parting] = []
        self._taken_at = 0.0
        self._is_open = True  # whether the flip may still give requests to this thread
        self._wake = threading.Event()  # the flip, or the end
        self._is_cancelled = False
        self._ahead = threading.Event()
        self._finished = threading.Event()
        self.tally = Tally()

    # ---- other threads ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to copy ahead."""
        threading.Thread(target=self._run, name="depart", daemon=True).start()

    def wait_ahead(self, timeout_s: float) -> bool:
        """Whether nearly everything that can be copied ahead is copied, or never will be."""
        return self._ahead.wait(timeout_s)

    def take(self, engine: Engine) -> frozenset[str]:
        """The flip, on the engine's thread: which requests go over; the others are replayed."""
        with self._lock:
            standing = {each.id: each for each in engine.scheduler.standing()}
            going = [name for name in standing if name in self._moves] if self._is_open else []
            self._engine, self._taken_at = engine, time.monotonic()
            self._partings = [
                _Parting(engine.scheduler.continued(name), standing[name]) for name in going
            ]
            self.tally.replayed += len(standing) - len(going)
            self._is_open = False
        self._wake.set()
        return frozenset(going)

    def finish(self, timeout_s: float) -> dict[str, float]:
        """Wait until all are handed over; figures of what became of them."""
        if not self._finished.wait(timeout_s):
            self.cancel()
            self._finished.wait(ENGINE_S)
        return self.tally.figures()

    def cancel(self) -> None:
        """Forfeited: end, and let the receivers free what they hold."""
        self._is_cancelled = True
        self._wake.set()
        for link in list(self._links.values()):
            link.sock.close()

    # ---- the thread of this object ---------------------------------------------------------------

    def _run(self) -> None:
        try:
            for link, room in reach(self._ground, self._record, self._wake):
                self._links[link.device] = link
                self._rooms += (room,)
            self._copy_ahead()
            self._hand_over()
        except MoectlError as error:
            if not self._is_cancelled:
                print(f"requests are replayed: {error.message}", file=sys.stderr, flush=True)
        finally:
            self._end()

    def _copy_ahead(self) -> None:
        began = time.monotonic()
        while not self._wake.is_set():
            started = time.monotonic()
            standing = self._look()
            if standing is None:
                return
            self._plan(standing.values())
            is_behind = self._copy_round(standing, last=False)
            if not is_behind:
                self._ahead.set()
            took = time.monotonic() - started
            is_gentle = time.monotonic() - began < GENTLE_S or not is_behind
            self._wake.wait((LOOK_S if not is_behind else took) if is_gentle else 0.0)

    def _look(self) -> dict[str, Standing] | None:
        """What stands here; None when the flip came meanwhile."""
        seen: list[Standing] = []

        def look(engine: Engine) -> None:
            seen.extend(engine.scheduler.standing())
            self._seen_changes = engine.incoming.changes

        try:
            self._ground.loop.ask(look, ENGINE_S)
        except WorkerError:
            if self._wake.is_set():
                return None
            raise
        return {each.id: each for each in seen}

    def _plan(self, standing: Any) -> None:
        """Give a receiver to those who have none yet."""
        new = [s for s in standing if s.id not in self._moves and s.id not in self.tally.reasons]
        if not new:
            return
        plan: MovePlan = plan_moves(new, self._rooms, self._block_tokens, self._turn)
        self._rooms = plan.rooms
        self.tally.reasons.update(plan.stays)
        for each in new:
            if each.id in plan.moves:
                self._number += 1
                device = self._ground.context.device
                key = f"moved/{self._record.operation_id}/{device}/{self._number}"
                link = self._links[plan.moves[each.id]]
                with self._lock:
                    self._moves[each.id] = _Move(key, link, each.starts)

    def _copy_round(self, standing: dict[str, Standing], last: bool) -> bool:
        """One piece per receiver: hold what is needed and copy what is whole (all when `last`).

        Returns whether much is left to copy.
        """
        self._forget_gone(standing)
        is_behind = False
        for link in list(self._links.values()):
            mine = {name: move for name, move in self._moves.items() if move.link is link}
            with self._trouble(link), self._ground.still():
                if not last and self._has_shrunk():
                    return True  # blocks have other numbers now: look again
                self._hold(link, mine, standing)
                is_behind |= self._copy(link, mine, standing, last)
        return is_behind

    def _has_shrunk(self) -> bool:
        engine = self._ground.loop.engine
        return engine is None or engine.incoming.changes != self._seen_changes

    def _forget_gone(self, standing: dict[str, Standing]) -> None:
        """Requests that ended, and those whose KV was given up, begin anew."""
        for name, move in list(self._moves.items()):
            now = standing.get(name)
            if now is not None and now.starts == move.starts:
                continue
            with self._trouble(move.link):
                move.link.sock.send({"op": "drop", "ids": [move.key]})
            if now is None:
                with self._lock:
                    self._moves.pop(name, None)
            else:
                move.starts, move.held, move.copied = now.starts, 0, 0

    def _hold(self, link: Link, mine: dict[str, _Move], standing: dict[str, Standing]) -> None:
        wanted = {
            name: standing[name].blocks_wanted(self._block_tokens)
            for name, move in mine.items()
            if standing[name].blocks_wanted(self._block_tokens) > move.held
        }
        if not wanted:
            return
        items = [[mine[name].key, count] for name, count in wanted.items()]
        full = set(link.sock.ask({"op": "hold", "items": items})["full"])
        for name, count in wanted.items():
            if mine[name].key in full:
                self._leave_behind(
                    name, f"{count} KV blocks are not free on {link.device} any more"
                )
                del mine[name]
            else:
                mine[name].held = count

    def _copy(
        self, link: Link, mine: dict[str, _Move], standing: dict[str, Standing], last: bool
    ) -> bool:
        size, items, going = self._block_tokens, [], []
        kv = self._kv()
        budget = max(PIECE_BYTES // kv.block_bytes, 1)
        behind = 0
        for name, move in mine.items():
            now = standing[name]
            end = -(-now.computed // size) if last else now.whole_blocks(size)
            count = end - move.copied if last else min(end - move.copied, budget)
            behind = max(behind, end - move.copied - count)
            if count <= 0:
                continue
            budget -= count
            blocks = now.blocks[move.copied : move.copied + count]
            items.append([move.key, move.copied, list(blocks)])
            going.append((name, move, blocks))
        if items:
            self._send_copies(link, items, going)
        return behind > BEHIND_MAX

    def _send_copies(self, link: Link, items: list[Any], going: list[Any]) -> None:
        link.sock.send({"op": "copy", "items": items})
        if not link.is_near:
            for _, _, blocks in going:
                link.sock.send_blocks(self._kv(), blocks)
        lost = set(link.sock.answer()["lost"])
        for name, move, blocks in going:
            if move.key in lost:
                self._leave_behind(name, f"{link.device} had to give its KV blocks away")
            else:
                move.copied += len(blocks)

    def _kv(self) -> Any:
        engine = self._engine or self._ground.loop.engine
        if engine is None:
            raise WorkerError("this rank has no engine any more")
        return engine.kv

    def _leave_behind(self, name: str, why: str) -> None:
        self.tally.reasons[name] = why
        with self._lock:
            self._moves.pop(name, None)

    def _trouble(self, link: Link) -> "_Trouble":
        return _Trouble(self, link)

    def lose(self, link: Link) -> None:
        """A receiver is gone: what was to go there is replayed."""
        self._links.pop(link.device, None)
        link.sock.close()
        self._rooms = tuple(room for room in self._rooms if room.device != link.device)
        for name, move in list(self._moves.items()):
            if move.link is link:
                self._leave_behind(name, f"{link.device} is gone")

    # ---- the flip --------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        if self._is_cancelled or not self._partings:
            return
        standing = {each.request.id: each.standing for each in self._partings}
        copied = sum(move.copied for move in self._moves.values())
        self._copy_round(standing, last=True)
        self.tally.tail_blocks = sum(move.copied for move in self._moves.values()) - copied
        links = [*self._links.values()]
        asked = []
        for link in links:
            with self._trouble(link):
                self._send_state(link)
                asked.append(link)
        for link in asked:
            with self._trouble(link):
                self._tell_moved(link, link.sock.answer())
        self.tally.tail_ms = (time.monotonic() - self._taken_at) * 1e3

    def _send_state(self, link: Link) -> None:
        for parting in self._partings:
            move = self._moves.get(parting.request.id)
            if move is not None and move.link is link:
                link.sock.send({
                    "op": "adopt",
                    "id": move.key,
                    "submit": message_of(parting.request),
                    "computed": parting.standing.computed,
                })  # fmt: skip
        link.sock.send({"op": "go"})

    def _tell_moved(self, link: Link, answer: dict[str, Any]) -> None:
        refused = {str(key): str(why) for key, why in answer["refused"]}
        dones = []
        for name, move in list(self._moves.items()):
            if move.link is not link:
                continue
            if move.key in refused:
                self._leave_behind(name, refused[move.key])
                continue
            where = f"{DoneReason.MOVED}:{link.data_address} {move.key}"
            dones.append(DoneOut(name, where))
            self.tally.moved += 1
            self.tally.bytes += move.copied * self._kv().block_bytes
        self._publish(dones)

    def _publish(self, dones: list[DoneOut]) -> None:
        told = {done.request_id for done in dones}
        self._partings = [each for each in self._partings if each.request.id not in told]
        self._ground.loop.publish(StepResult((), tuple(dones)))

    def _end(self) -> None:
        """Whatever happened: every request that was taken from the engine is told something."""
        with self._lock:
            self._is_open = False
        left = [DoneOut(each.request.id, DoneReason.MOVED) for each in self._partings]
        self.tally.replayed += len(left)
        self._publish(left)
        for link in list(self._links.values()):
            link.sock.close()
        for name, why in list(self.tally.reasons.items())[:8]:
            print(f"request {name} is replayed: {why}", file=sys.stderr, flush=True)
        self._engine = None
        self._ahead.set()
        self._finished.set()


class _Trouble(AbstractContextManager[None]):
    """Whatever goes wrong with one receiver costs only the requests that go there."""

    def __init__(self, departure: Departure, link: Link) -> None:
        self._departure, self._link = departure, link

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, MoectlError | KeyError | TypeError | ValueError):
            return False
        print(f"{self._link.device} takes no requests: {error}", file=sys.stderr, flush=True)
        self._departure.lose(self._link)
        return True
