"""What is known of the checkpoints that the declared models name?

The one place of the controller that reads model files. Reading takes milliseconds and may touch a
slow disk, so it happens on a thread, once per folder state (name, size and time of config and
index), and the pure code gets the answers as values: facts, or the reason why there are none. The
loop asks at every tick, dozens of times while a model changes: facts that were good are looked at
again after a while only.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..core.errors import CheckpointError, MoectlError
from ..core.facts import ModelFacts, read_model_facts

FOLDERS_REMEMBERED_MAX = 256  # a fleet declares tens of models
LOOK_AGAIN_S = 1.0  # a checkpoint is not changed in place while it is served; a missing one comes


@dataclass(frozen=True, slots=True)
class NoFacts:
    """Why a checkpoint could not be counted."""

    message: str
    next_step: str = ""


Facts = Mapping[str, ModelFacts | NoFacts]  # by the folder as the spec names it
_State = tuple[tuple[str, int, int], ...]


class FactsSource(Protocol):
    """Where the loop and the API get facts from; a simulation brings its own."""

    async def read_all(self, folders: Iterable[str]) -> Facts:
        """Facts of every folder; never raises for a bad one."""
        ...


class FactsReader:
    """Reads facts and remembers them for as long as the files stay as they are."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_State, ModelFacts | NoFacts]] = {}
        self._looked_at: dict[str, float] = {}  # when the state of a known folder was asked for

    async def read_all(self, folders: Iterable[str]) -> dict[str, ModelFacts | NoFacts]:
        """Facts of every folder; never raises for a bad one."""
        wanted = sorted(set(folders))
        return dict(zip(wanted, [await self.read(folder) for folder in wanted], strict=True))

    async def read(self, folder: str) -> ModelFacts | NoFacts:
        """Facts of one folder, or why there are none."""
        known = self._known.get(folder)  # once: another thread may forget them all
        facts = known[1] if known is not None else None
        age_s = time.monotonic() - self._looked_at.get(folder, float("-inf"))
        if isinstance(facts, ModelFacts) and age_s < LOOK_AGAIN_S:
            return facts
        return await asyncio.to_thread(self._read, folder)

    def _read(self, folder: str) -> ModelFacts | NoFacts:
        self._looked_at[folder] = time.monotonic()
        state = _state_of(Path(folder))
        known = self._known.get(folder)
        if known is not None and known[0] == state and state:
            return known[1]
        facts = _read_now(Path(folder))
        if len(self._known) >= FOLDERS_REMEMBERED_MAX:
            self._known.clear()
            self._looked_at.clear()
        self._known[folder] = (state, facts)
        return facts


def _read_now(folder: Path) -> ModelFacts | NoFacts:
    try:
        return read_model_facts(folder)
    except CheckpointError as error:
        return NoFacts(error.message, error.next_step)
    except (MoectlError, OSError, ValueError) as error:
        return NoFacts(f"{folder}: {error}")


def _state_of(folder: Path) -> _State:
    """Name, size and time of every file that the facts depend on; empty when it cannot be told."""
    try:
        files = sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors"))
        return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    except OSError:
        return ()
