"""What can an agent do for a transition? The acts as plain data, each with a key of its own.

The pure executor returns actions; the shell performs each key at most once at a time and remembers
how it ended. A key holds the operation, so the same act of a later operation is another one.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from ..core.plan import DeviceId, Phase


class Word(StrEnum):
    """What a worker is told."""

    PREPARE = "prepare"
    COMMIT = "commit"
    RETIRE = "retire"
    FORFEIT = "forfeit"
    LEAVE = "leave"  # take no new requests
    RETURN = "return"  # take them again


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the worker of a joining rank; done when its control socket answers."""

    operation_id: str
    device: DeviceId
    instance: int

    @property
    def key(self) -> str:
        """Identity of the act."""
        return f"{self.operation_id} spawn {self.device} {self.instance}"


@dataclass(frozen=True, slots=True)
class Tell:
    """Say something to a worker; done when it reports that it is done."""

    operation_id: str
    device: DeviceId
    word: Word

    @property
    def key(self) -> str:
        """Identity of the act."""
        return f"{self.operation_id} {self.word} {self.device}"


@dataclass(frozen=True, slots=True)
class Stop:
    """End a worker that was of `instance`; done when its process is gone."""

    operation_id: str
    device: DeviceId
    instance: int

    @property
    def key(self) -> str:
        """Identity of the act."""
        return f"{self.operation_id} stop {self.device} {self.instance}"


@dataclass(frozen=True, slots=True)
class Free:
    """Return every page that the model holds on a device where no worker of it runs."""

    operation_id: str
    device: DeviceId

    @property
    def key(self) -> str:
        """Identity of the act."""
        return f"{self.operation_id} free {self.device}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Acknowledge a phase; the last action of it."""

    operation_id: str
    phase: Phase
    ok: bool
    error: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Identity of the act."""
        return f"{self.operation_id} answer {self.phase}"


Action = Spawn | Tell | Stop | Free | Answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an action ended."""

    ok: bool
    error: str = ""
    figures: dict[str, float] = field(default_factory=dict)
