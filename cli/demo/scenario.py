"""What happens during the demo, in order? Quiet, scale, quiet, ..., kill, heal; with evidence of
all.

Acts on a running fleet through the API like anyone else, and kills one worker by its process id.
"""

import signal
import time
import uuid
from collections.abc import Callable

from ...core.errors import DeadlineError, MoectlError
from ...core.paths import ProcessId, process_id, processes_of_instance, signal_process
from ...core.records import WorkerRecord
from ...core.transitions import WorkerState
from .. import waiting
from ..client import ApiClient
from ..fleet_view import FleetView, TransitionView
from .metrics import Window
from .report import KillRun, ScaleRun

QUIET_S = 5.0  # unless told otherwise: a steady percentile needs some hundreds of gaps
SETTLE_S = 0.7  # after a change, before the quiet time counts
SCALE_DEADLINE_S = 90.0
HEAL_DEADLINE_S = 90.0

Tell = Callable[[str], None]
Watch = Callable[[TransitionView], None]


class Scenario:
    """The acts of one run against one model."""

    def __init__(
        self,
        client: ApiClient,
        model: str,
        instance: str,
        tell: Tell,
        watch: Watch,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._client = client
        self._model = model
        self._instance = instance
        self._tell = tell
        self._watch = watch
        self._quiet_s = quiet_s

    def scales(self) -> list[ScaleRun]:
        """All scales, each with the quiet time before and after it."""
        runs: list[ScaleRun] = []
        before = self._quiet()
        for width in self._widths():
            transition = self._scale(width)
            after = self._quiet()
            runs.append(ScaleRun(transition, transition_window(transition), before, after))
            before = after
        return runs

    def kill_one(self) -> KillRun:
        """kill -9 the worker of the last rank, and wait until the width is whole again."""
        worker, process = self._victim()
        self._tell(f"kill -9 {worker.pid}: the worker on {worker.device}")
        known = {t.operation_id for t in self._client.fleet().transitions}
        killed_at = time.time()
        if not signal_process(process, signal.SIGKILL):
            raise MoectlError(f"the worker on {worker.device} (pid {worker.pid}) was gone already")
        heal = self._wait_heal(known, worker)
        recovered_at = heal.phase_at.get("retire", time.time())
        self._tell(f"healed after {recovered_at - killed_at:.2f} s")
        return KillRun(str(worker.device), worker.pid, killed_at, recovered_at)

    def rest(self) -> None:
        """Some more quiet service, so that the last requests are seen to end well."""
        self._quiet()

    def _widths(self) -> tuple[int, ...]:
        fleet = self._client.fleet()
        model = fleet.model(self._model)
        if model is None or model.status is None:
            raise MoectlError(f"model {self._model} is not there any more")
        devices = sum(len(node.devices) for node in fleet.nodes)
        return widths_of(model.status.effective_width, devices)

    def _quiet(self) -> Window:
        time.sleep(SETTLE_S)
        start = time.time()
        time.sleep(self._quiet_s)
        return Window(start, time.time())

    def _scale(self, width: int) -> TransitionView:
        self._tell(f"scale {self._model} to {width} devices")
        answer = self._client.scale(
            self._model, str(width), operation_id=f"demo-{uuid.uuid4().hex[:12]}", dry_run=False
        )
        transition = waiting.wait_transition(
            self._client, str(answer["operation_id"]), SCALE_DEADLINE_S, self._watch
        )
        took = transition.phase_at["retire"] - transition.accepted_at
        self._tell(f"{transition.from_width} -> {transition.to_width} served after {took:.2f} s")
        return transition

    def _victim(self) -> tuple[WorkerRecord, ProcessId]:
        """The serving worker of the highest rank, checked to be a process of this very fleet."""
        model = self._client.fleet().model(self._model)
        serving = [
            worker
            for worker in (model.workers if model else ())
            if worker.state is WorkerState.SERVING
        ]
        if not serving:
            raise MoectlError(f"model {self._model}: no worker is serving")
        worker = max(serving, key=lambda each: each.rank)
        process = process_id(worker.pid)
        if process is None or process not in processes_of_instance(self._instance):
            raise MoectlError(f"pid {worker.pid} is not a worker of this fleet: nothing was killed")
        return worker, process

    def _wait_heal(self, known: set[str], killed: WorkerRecord) -> TransitionView:
        """The HEAL that follows, once it is done and every rank serves."""
        end = time.monotonic() + HEAL_DEADLINE_S
        while time.monotonic() < end:
            fleet = self._client.fleet()
            heals = [
                t for t in fleet.transitions if t.kind == "heal" and t.operation_id not in known
            ]
            for heal in heals:
                self._watch(heal)
            done = [heal for heal in heals if heal.phase == "done"]
            if done and self._is_whole(fleet, killed):
                return done[-1]
            time.sleep(waiting.POLL_S)
        raise DeadlineError(
            f"the model was not whole again {HEAL_DEADLINE_S:.0f} s after its worker was killed",
            next_step="`moectl demo --keep-logs DIR` keeps the logs of all parts",
        )

    def _is_whole(self, fleet: FleetView, killed: WorkerRecord) -> bool:
        model = fleet.model(self._model)
        return (
            model is not None
            and model.is_whole
            and all(w.pid != killed.pid for w in model.workers if w.state is WorkerState.SERVING)
        )


def widths_of(start: int, devices: int) -> tuple[int, ...]:
    """Where the demo goes from a width: twice as wide, one less, and back; 2 -> 4 -> 3 -> 2.

    Stays within the devices and leaves out what would change nothing.
    """
    widest = min(2 * start, devices)
    wanted = (widest, max(1, widest - 1), start)
    return tuple(
        width for before, width in zip((start, *wanted), wanted, strict=False) if width != before
    )


def transition_window(transition: TransitionView) -> Window:
    """From accepted to retired."""
    end = transition.phase_at.get("done", transition.phase_at.get("retire", time.time()))
    return Window(transition.accepted_at, end)
