"""What should this node do next for a transition? A pure function of what is seen.

`decide` looks at the transition, the workers of this node and how earlier actions ended, and
returns the actions that are due; called again after every change, it ends with one Answer per
phase. It never remembers: after a restart of the agent the workers' own reports (prepared
operation, epoch) say how far things are, and what cannot be seen is done again, since every act is
idempotent.

    PREPARE   spawn joining ranks; leaving ranks take no new requests; all prepare
    COMMIT    all flip; who is dead by now is skipped, healing follows
    RETIRE    staying ranks drop the old epoch; leaving ones stop and their pages are freed
    FORFEIT   all drop the new epoch; joining ranks stop; leaving ones take requests again
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.plan import DeviceId, Phase, joining_ranks, leaving_devices
from ..core.records import TransitionRecord
from ..core.transitions import WorkerState
from .actions import Action, Answer, Free, Outcome, Spawn, Stop, Tell, Word

# Figures that workers measure side by side: the slowest, or last, counts. All others add up.
_SIDE_BY_SIDE = ("_s", "_ms", "_at", "_step")


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker of this node and of the transition's model, as its agent sees it."""

    device: DeviceId
    instance: int
    state: WorkerState
    epoch: int
    prepared_operation: str = ""
    message: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.state not in (WorkerState.LOST, WorkerState.STOPPED)


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that a decision rests on, beside the transition."""

    node: str
    workers: Mapping[DeviceId, SeenWorker]
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)  # by key of the action
    answered: Phase | None = None  # the last phase of this operation that was acknowledged


def decide(transition: TransitionRecord, seen: Seen) -> tuple[Action, ...]:
    """The actions that are due now; none when the phase is answered or not this node's business."""
    if seen.answered is transition.phase:
        return ()
    work = _Work(transition, seen)
    if not work.mine:
        return ()
    match transition.phase:
        case Phase.PREPARE:
            return work.prepare()
        case Phase.COMMIT:
            return work.commit()
        case Phase.RETIRE:
            return work.retire()
        case Phase.FORFEIT:
            return work.forfeit()
        case Phase.DONE | Phase.FORFEITED:
            return ()


class _Work:
    """One decision: the sets of devices it is about, and a rule per phase."""

    def __init__(self, transition: TransitionRecord, seen: Seen) -> None:
        old, new = transition.old, transition.new
        self._transition = transition
        self._seen = seen
        self._id = transition.operation_id
        self._joining = {
            new.ranks[rank]: new.instances[rank]
            for rank in joining_ranks(old, new)
            if new.ranks[rank].node == seen.node
        }
        self._leaving = [d for d in leaving_devices(old, new) if d.node == seen.node]
        self._new = [device for device in new.ranks if device.node == seen.node]
        self.mine = self._new + self._leaving

    def prepare(self) -> tuple[Action, ...]:
        """Everybody who will take part gets ready, or the first failure is reported."""
        due: list[Action] = [
            Tell(self._id, device, Word.LEAVE) for device in self._alive(self._leaving)
        ]
        if self._transition.new.width:
            for device in self.mine:
                due += self._prepare_one(device)
        return self._finish(due, self._deaths(self._new))

    def _prepare_one(self, device: DeviceId) -> list[Action]:
        worker = self._seen.workers.get(device)
        instance = self._joining.get(device)
        if instance is not None and (worker is None or worker.instance != instance):
            if worker is not None and worker.is_alive:
                return [Stop(self._id, device, worker.instance)]
            return [Spawn(self._id, device, instance)]
        if worker is None or not worker.is_alive:
            return []  # a dead leaving rank has nothing to prepare; others are `_deaths`
        return [Tell(self._id, device, Word.PREPARE)]

    def commit(self) -> tuple[Action, ...]:
        """The decision is made: whoever is alive flips; the dead are healed afterwards."""
        if not self._transition.new.width:
            return self._finish([], [])
        due = [Tell(self._id, device, Word.COMMIT) for device in self._alive(self.mine)]
        return self._finish(due, [])

    def retire(self) -> tuple[Action, ...]:
        """What only the old epoch needed goes."""
        due: list[Action] = [
            Tell(self._id, device, Word.RETIRE) for device in self._alive(self._new)
        ]
        for device in self._leaving:
            due.append(self._end(device) or Free(self._id, device))
        return self._finish(due, [])

    def forfeit(self) -> tuple[Action, ...]:
        """What PREPARE did is undone; pages of the old epoch stay, also those of a dead rank."""
        due: list[Action] = []
        old = self._transition.old
        for device in self._alive(self.mine):
            due.append(Tell(self._id, device, Word.FORFEIT))
        for device in self._alive(self._leaving):
            # Its KV must be whole again before requests come.
            if self._is_settled(Tell(self._id, device, Word.FORFEIT)):
                due.append(Tell(self._id, device, Word.RETURN))
        for device, instance in self._joining.items():
            worker = self._seen.workers.get(device)
            told = self._is_settled(Tell(self._id, device, Word.FORFEIT))
            if worker is not None and worker.is_alive and worker.instance == instance:
                due += [Stop(self._id, device, instance)] if told else []
            elif old is None or device not in old.ranks:
                due.append(Free(self._id, device))
        return self._finish(due, [])

    def _end(self, device: DeviceId) -> Stop | None:
        worker = self._seen.workers.get(device)
        if worker is None or not worker.is_alive:
            return None
        return Stop(self._id, device, worker.instance)

    def _alive(self, devices: Iterable[DeviceId]) -> list[DeviceId]:
        workers = self._seen.workers
        return [device for device in devices if device in workers and workers[device].is_alive]

    def _deaths(self, devices: Iterable[DeviceId]) -> list[str]:
        """Ranks of the new epoch that cannot get ready because they are dead."""
        found = []
        for device in devices:
            worker = self._seen.workers.get(device)
            if device in self._joining:
                spawned = self._seen.outcomes.get(
                    Spawn(self._id, device, self._joining[device]).key
                )
                is_ours = worker is not None and worker.instance == self._joining[device]
                if is_ours and worker is not None and not worker.is_alive:
                    found.append(f"the worker on {device} died: {worker.message}")
                elif spawned is not None and spawned.ok and not is_ours:
                    found.append(f"the worker on {device} died while it prepared")
            elif worker is None or not worker.is_alive:
                found.append(f"no worker runs on {device}")
        return found

    def _finish(self, due: Sequence[Action], problems: list[str]) -> tuple[Action, ...]:
        """The actions that still have to be done, or the answer when none has."""
        phase = self._transition.phase
        failures = [
            f"{action.device}: {outcome.error}"
            for action in due
            if not isinstance(action, Answer)
            and (outcome := self._seen.outcomes.get(action.key)) is not None
            and not outcome.ok
        ]
        problems = problems + failures
        if problems and phase is Phase.PREPARE:
            return (Answer(self._id, phase, False, "; ".join(problems)),)
        pending = tuple(action for action in due if not self._is_settled(action))
        if pending or self._waits_for_stop():
            return pending
        figures = merge_figures(
            self._seen.outcomes[action.key].figures
            for action in due
            if action.key in self._seen.outcomes
        )
        return (Answer(self._id, phase, not problems, "; ".join(problems), figures),)

    def _waits_for_stop(self) -> bool:
        """Whether an act of this phase must still show its effect before the answer."""
        if self._transition.phase is Phase.FORFEIT:
            return any(
                self._seen.workers[device].instance == instance
                for device, instance in self._joining.items()
                if device in self._alive([device])
            )
        if self._transition.phase is Phase.RETIRE:
            return bool(self._alive(self._leaving))
        return False

    def _is_settled(self, action: Action) -> bool:
        """Whether an action ended, well or not. Workers repeat what they said when asked again."""
        return action.key in self._seen.outcomes


def merge_figures(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several workers as one: the slowest of what runs side by side, else sums."""
    merged: dict[str, float] = {}
    for figures in parts:
        for name, value in figures.items():
            if name not in merged:
                merged[name] = value
            elif name.endswith(_SIDE_BY_SIDE):
                merged[name] = max(merged[name], value)
            else:
                merged[name] += value
    return merged
