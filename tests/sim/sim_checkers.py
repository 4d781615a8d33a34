"""Referees: they read every revision of the store and say which law was broken, and when.

They know nothing of how the controller works; they look at records only.
"""

import asyncio
import contextlib

from sim_parse import parse

from moectl.core.plan import Phase, Placement, TransitionKind, check_placement
from moectl.core.records import Keys, TransitionRecord
from moectl.core.store.memory import MemoryStore
from moectl.core.store.protocol import EventType, WatchBatch
from moectl.core.transitions import PHASE_MOVES, TERMINAL_PHASES


class Referee:
    """Follows one cluster; `verdicts` collects what went wrong."""

    def __init__(self, store: MemoryStore, keys: Keys, expert_counts: tuple[int, ...]) -> None:
        self.verdicts: list[str] = []
        self.transitions: dict[str, TransitionRecord] = {}
        self.placements: dict[str, Placement] = {}
        self.phases_seen: list[tuple[str, str, Phase]] = []
        self._keys = keys
        self._expert_counts = expert_counts
        self._watch = store.watch_prefix(keys.root, start_revision=1)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        async for batch in self._watch:
            by_revision: dict[int, list] = {}
            for event in batch.events:
                by_revision.setdefault(event.kv.mod_revision, []).append(event)
            for revision, events in sorted(by_revision.items()):
                self._look(WatchBatch(revision, tuple(events)))

    def _blame(self, revision: int, text: str) -> None:
        self.verdicts.append(f"revision {revision}: {text}")

    def _look(self, batch: WatchBatch) -> None:
        committed: list[TransitionRecord] = []
        for event in batch.events:
            if event.kv.key.startswith(self._keys.transitions):
                self._look_at_transition(event, batch.revision, committed)
        for event in batch.events:
            if event.kv.key.startswith(self._keys.placements):
                self._look_at_placement(event, batch.revision, committed)
        self._check_one_active(batch.revision)

    def _look_at_transition(self, event, revision: int, committed: list) -> None:
        key = event.kv.key.removeprefix(self._keys.transitions)
        before = self.transitions.pop(key, None)
        if event.type is EventType.DELETE:
            if before is not None and before.phase not in TERMINAL_PHASES:
                self._blame(revision, f"{key} was removed in phase {before.phase}")
            return
        record = parse(TransitionRecord, event.kv.value)
        self.transitions[key] = record
        self.phases_seen.append((record.model, key, record.phase))
        if before is None and record.phase is not Phase.PREPARE:
            self._blame(revision, f"{key} began in {record.phase}")
        if before is not None and record.phase not in PHASE_MOVES[before.phase]:
            self._blame(revision, f"{key}: {before.phase} -> {record.phase}")
        if record.phase is Phase.COMMIT:
            committed.append(record)

    def _look_at_placement(self, event, revision: int, committed: list) -> None:
        model = event.kv.key.removeprefix(self._keys.placements)
        causes = [record for record in committed if record.model == model]
        if len(causes) != 1:
            self._blame(revision, f"placement of {model} changed without a commit")
            return
        if event.type is EventType.DELETE:
            self.placements.pop(model, None)
            if causes[0].kind is not TransitionKind.DELETE:
                self._blame(revision, f"placement of {model} removed by {causes[0].kind}")
            return
        placement = parse(Placement, event.kv.value)
        try:
            check_placement(placement, self._expert_counts)
        except ValueError as error:
            self._blame(revision, f"placement of {model}: {error}")
        if placement != causes[0].new:
            self._blame(revision, f"placement of {model} is not the committed one")
        before = self.placements.get(model)
        if before is not None and placement.epoch <= before.epoch:
            self._blame(revision, f"epoch of {model}: {before.epoch} -> {placement.epoch}")
        if before is not None and causes[0].old != before:
            self._blame(revision, f"commit of {model} replaced a placement it had not seen")
        self.placements[model] = placement

    def _check_one_active(self, revision: int) -> None:
        running: dict[str, list[str]] = {}
        for key, record in self.transitions.items():
            if record.phase not in TERMINAL_PHASES:
                running.setdefault(record.model, []).append(key)
        for model, keys in running.items():
            if len(keys) > 1:
                self._blame(revision, f"{model} has two running transitions: {sorted(keys)}")
