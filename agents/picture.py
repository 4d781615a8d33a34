"""What does an agent know of the fleet? The last records it saw, kept true by watches.

With the store away it stays as it was: the agent acts on the last fenced record. Records that
cannot be read are logged and skipped, so one bad record never stops a node.
"""

import logging

from ..core.errors import ProtocolError
from ..core.plan import Placement
from ..core.records import Keys, SpecRecord, TransitionRecord, WorkerRecord, from_json
from ..core.transitions import TERMINAL_PHASES
from .changes import Changes

log = logging.getLogger("moectl.agent.picture")


class Picture:
    """Running transitions, placements, workers and models; changed by `apply` only."""

    def __init__(self, keys: Keys) -> None:
        self.changes = Changes()
        self.loaded: set[str] = set()
        self.transitions: dict[str, TransitionRecord] = {}  # running ones, by operation id
        self.placements: dict[str, Placement] = {}
        self.folders: dict[str, str] = {}  # model -> folder of its checkpoint, of declared models
        self.workers: dict[str, WorkerRecord] = {}  # by key
        self._keys = keys
        self._readers = {
            keys.transitions: self._apply_transition,
            keys.placements: self._apply_placement,
            keys.workers: self._apply_worker,
            keys.specs: self._apply_spec,
        }

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What has to be followed."""
        return tuple(self._readers)

    @property
    def is_complete(self) -> bool:
        """Whether the first listing of everything has been seen."""
        return self.loaded.issuperset(self.prefixes)

    def apply(self, prefix: str, key: str, value: bytes | None) -> None:
        """Take one change of the store."""
        try:
            self._readers[prefix](key, value)
        except ProtocolError as error:
            log.warning("record %s skipped: %s", key, error.message)

    def settle(self, prefix: str) -> None:
        """A listing or batch is in: wake who waits."""
        self.loaded.add(prefix)
        self.changes.notify()

    def busy_models(self) -> frozenset[str]:
        """Models that a running transition changes."""
        return frozenset(record.model for record in self.transitions.values())

    def _apply_transition(self, key: str, value: bytes | None) -> None:
        name = key.removeprefix(self._keys.transitions)
        if value is None:
            self.transitions.pop(name, None)
            return
        record = from_json(TransitionRecord, value)
        if record.phase in TERMINAL_PHASES:
            self.transitions.pop(name, None)
        else:
            self.transitions[name] = record

    def _apply_placement(self, key: str, value: bytes | None) -> None:
        name = key.removeprefix(self._keys.placements)
        if value is None:
            self.placements.pop(name, None)
        else:
            self.placements[name] = from_json(Placement, value)

    def _apply_worker(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.workers.pop(key, None)
        else:
            self.workers[key] = from_json(WorkerRecord, value)

    def _apply_spec(self, key: str, value: bytes | None) -> None:
        kind, _, name = key.removeprefix(self._keys.specs).partition("/")
        if kind != "Model":
            return
        self.folders.pop(name, None)
        if value is not None:
            source = from_json(SpecRecord, value).spec.get("source")
            if isinstance(source, dict) and isinstance(source.get("path"), str):
                self.folders[name] = source["path"]
