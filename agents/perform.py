"""How are the executor's actions carried out? Each key once at a time, its end remembered.

The shell around `executor.decide`: it starts what is due, drops what is no longer due (a phase that
was left behind), and keeps outcomes until the operation is over. Every act has a deadline of its
own; saying something to a worker again is safe, so a break of its connection only costs time.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..core.errors import MoectlError
from ..core.records import TransitionRecord, to_json
from .actions import Action, Answer, Free, Outcome, Spawn, Stop, Tell, Word
from .worker import LocalWorker

log = logging.getLogger("moectl.agent.perform")

LOOK_S = 0.5  # for what no change of the worker tells: a deadline that has come
FLIP_S = 5.0  # how long a flip that is under way may take to be reported
ACT_S = 300.0  # the longest any act may take; phases have shorter deadlines of the controller

# The event that ends each word, and the operation on the wire.
_EVENTS = {
    Word.PREPARE: "prepared",
    Word.COMMIT: "committed",
    Word.RETIRE: "retired",
    Word.FORFEIT: "forfeited",
}


@dataclass(frozen=True, slots=True)
class Hands:
    """What performing needs: how to find, start, stop and free."""

    find: Callable[[Tell, TransitionRecord], LocalWorker | None]
    spawn: Callable[[Spawn, TransitionRecord], Awaitable[None]]
    stop: Callable[[Stop, TransitionRecord], Awaitable[None]]
    free: Callable[[Free, TransitionRecord], Awaitable[float]]
    answer: Callable[[Answer, TransitionRecord], None]
    on_change: Callable[[], None]


class Performer:
    """Runs actions as tasks."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._running: dict[str, asyncio.Task[None]] = {}
        self._outcomes: dict[str, dict[str, Outcome]] = {}  # operation id -> key -> outcome
        self._encoded: tuple[TransitionRecord, str] | None = None  # the last that workers were told

    def outcomes(self, operation_id: str) -> dict[str, Outcome]:
        """How the actions of an operation ended so far."""
        return self._outcomes.setdefault(operation_id, {})

    def start(self, transition: TransitionRecord, due: Iterable[Action]) -> None:
        """Start the due actions that do not run; stop saying what is no longer due."""
        wanted = {action.key: action for action in due}
        for key, task in self._running.items():
            is_mine = key.startswith(f"{transition.operation_id} ")
            is_word = not any(f" {act} " in key for act in ("spawn", "stop", "free"))
            if is_mine and is_word and key not in wanted:
                task.cancel()
        for key, action in wanted.items():
            if isinstance(action, Answer):
                self._hands.answer(action, transition)
            elif key not in self._running:
                task = asyncio.get_running_loop().create_task(self._run(action, transition))
                self._running[key] = task

    def forget_except(self, operation_ids: Iterable[str]) -> None:
        """Drop the outcomes of operations that are over."""
        kept = set(operation_ids)
        self._outcomes = {name: each for name, each in self._outcomes.items() if name in kept}

    def text_of(self, transition: TransitionRecord) -> str:
        """A transition as JSON, encoded once for all workers that are told of it."""
        if self._encoded is None or self._encoded[0] is not transition:
            self._encoded = (transition, to_json(transition))
        return self._encoded[1]

    async def close(self) -> None:
        """Stop everything that runs."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, action: Spawn | Tell | Stop | Free, transition: TransitionRecord) -> None:
        try:
            async with asyncio.timeout(ACT_S):
                outcome = await self._act(action, transition)
        except MoectlError as error:
            outcome = Outcome(False, error.message)
        except TimeoutError:
            outcome = Outcome(False, f"not done within {ACT_S:g} s")
        except Exception as error:  # the task's top: a bug in one act must not hang the phase
            log.exception("action %s failed by a bug", action.key)
            outcome = Outcome(False, f"bug: {error!r}")
        finally:
            self._running.pop(action.key, None)
        level = logging.INFO if outcome.ok else logging.ERROR
        log.log(level, "%s: %s", action.key, "ok" if outcome.ok else outcome.error)
        self.outcomes(action.operation_id)[action.key] = outcome
        self._hands.on_change()

    async def _act(
        self, action: Spawn | Tell | Stop | Free, transition: TransitionRecord
    ) -> Outcome:
        if isinstance(action, Tell):
            return await self._tell(action, transition)
        if isinstance(action, Spawn):
            await self._hands.spawn(action, transition)
        elif isinstance(action, Stop):
            await self._hands.stop(action, transition)
        else:
            return Outcome(
                True, figures={"pages_freed": await self._hands.free(action, transition)}
            )
        return Outcome(True)

    async def _tell(self, action: Tell, transition: TransitionRecord) -> Outcome:
        """Say it, and wait for the event that ends it; say it again after every reconnection."""
        worker = self._hands.find(action, transition)
        if worker is None or worker.is_dead:
            return Outcome(False, "its worker is dead")
        said_on = -1
        while not worker.is_dead:
            if worker.control.connections != said_on:
                said_on = worker.control.connections
                try:
                    await worker.control.call(**self._message(action, transition))
                except MoectlError as error:
                    if worker.control.connections == said_on and not worker.is_dead:
                        return await self._refused(action, worker, error)
                    continue
                said_on = worker.control.connections
                if action.word in (Word.LEAVE, Word.RETURN):
                    return Outcome(True)
            outcome = worker.take_event(_EVENTS[action.word], action.operation_id)
            if outcome is not None:
                return outcome
            await self._wait(worker)
        return Outcome(False, worker.message or "its worker died")

    async def _refused(self, action: Tell, worker: LocalWorker, error: MoectlError) -> Outcome:
        """A no is final, except for COMMIT: a worker that is flipping already refuses to again."""
        end_s = time.monotonic() + FLIP_S
        while action.word is Word.COMMIT and time.monotonic() < end_s and not worker.is_dead:
            outcome = worker.take_event(_EVENTS[action.word], action.operation_id)
            if outcome is not None:
                return outcome
            await self._wait(worker)
        return Outcome(False, error.message)

    async def _wait(self, worker: LocalWorker) -> None:
        """Until the worker says something or dies; its report is asked for once a second anyway."""
        await worker.changes.wait(worker.changes.ticket(), LOOK_S)

    def _message(self, action: Tell, transition: TransitionRecord) -> dict[str, Any]:
        match action.word:
            case Word.LEAVE | Word.RETURN:
                return {"op": "leaving", "on": action.word is Word.LEAVE}
            case Word.PREPARE:
                return {"op": "prepare", "ready": {"transition": self.text_of(transition)}}
            case _:
                message = {"op": str(action.word), "operation_id": action.operation_id}
                return message | {"epoch": transition.new.epoch}
