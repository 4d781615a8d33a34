"""How does one node carry out what the fleet decided? Look, decide, act, tell.

`Node` holds the parts together: the picture of the store, the workers of this node, the executor's
decisions and the performer of actions. It writes worker records, acknowledgements and events
through the publisher, which never blocks it; with the store away everything here goes on.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from typing import Any

from ..core.errors import MoectlError
from ..core.paths import NodeHome, end_process
from ..core.plan import DeviceId, Phase
from ..core.records import AckRecord, Keys, TransitionRecord, WorkerRecord, to_json
from ..core.transitions import WorkerState
from .actions import Answer, Free, Spawn, Stop
from .children import FORK_SERVER, Children
from .config import AgentConfig
from .events import EventLog
from .executor import Seen, decide
from .launch.orders import WorkerLaunch
from .memory_book import MemoryBook
from .perform import Hands, Performer
from .picture import Picture
from .publish import Publisher
from .sweep import Finding, Lasting, Leftover, Missing, Scene, Stale, Stray, sweep
from .worker import LocalWorker
from .workers import Workers, worker_log

log = logging.getLogger("moectl.agent.node")

LOOK_S = 1.0  # the loop looks at least this often; everything urgent wakes it


class Node:
    """One node's part in every transition, and its sweeping between them."""

    def __init__(
        self,
        config: AgentConfig,
        home: NodeHome,
        picture: Picture,
        children: Children,
        publisher: Publisher,
        events: EventLog,
    ) -> None:
        self.workers = Workers(config.node.name, home, self._on_worker_change)
        self.memory = MemoryBook(home.hmm_socket)
        self._name = config.node.name
        self._config = config
        self._home = home
        self._keys = Keys(config.cluster)
        self._picture = picture
        self._children = children
        self._publisher = publisher
        self._events = events
        self._lasting = Lasting()
        self._answered: dict[str, Phase] = {}
        self._losses_told: set[tuple[str, DeviceId, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._performer = Performer(
            Hands(
                find=lambda action, transition: self.workers.get(transition.model, action.device),
                spawn=self._spawn,
                stop=self._stop,
                free=self._free,
                answer=self._answer,
                on_change=picture.changes.notify,
            )
        )

    async def run(self) -> None:
        """Look and act until cancelled."""
        changes = self._picture.changes
        while True:
            ticket = changes.ticket()
            try:
                self._turn()
            except Exception:  # the loop's top: one bad record must not stop the node
                log.exception("a turn failed by a bug")
            await changes.wait(ticket, LOOK_S)

    async def close(self) -> None:
        """Stop acting; workers are left as they are."""
        await self._performer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.workers.close()
        await self.memory.close()

    # ------------------------------------------------------------------ deciding

    def _turn(self) -> None:
        transitions = self._picture.transitions
        for transition in list(transitions.values()):
            self._performer.start(transition, decide(transition, self._seen(transition)))
        self._performer.forget_except(transitions)
        self._answered = {k: v for k, v in self._answered.items() if k in transitions}
        for record in list(self._picture.workers.values()):
            if record.state is WorkerState.LOST and record.device.node != self._name:
                self._tell_of_loss(record.model, record.device, record.instance, record.epoch)

    def _seen(self, transition: TransitionRecord) -> Seen:
        name = transition.operation_id
        return Seen(
            node=self._name,
            workers={worker.device: worker.seen() for worker in self.workers.of(transition.model)},
            outcomes=self._performer.outcomes(name),
            answered=self._answered.get(name),
        )

    # ------------------------------------------------------------------ acting

    async def _spawn(self, action: Spawn, transition: TransitionRecord) -> None:
        if not self._children.is_running(FORK_SERVER):
            await self._children.restart(FORK_SERVER)  # its death is noticed once a second only
        model, device = transition.model, action.device
        launch = WorkerLaunch(
            model=model,
            node=self._name,
            device=device.device,
            instance=action.instance,
            node_address=self._config.node.address,
            hmm_socket=str(self._home.hmm_socket),
            control_socket=str(self._home.worker_socket(model, device.device)),
            data_host=self._config.node.address,
            secret_file=self._config.secret_file,
            model_folder=str(transition.model_spec["source"]["path"]),
            model_spec=transition.model_spec,
            log_path=str(worker_log(self._home, model, device.device)),
        )
        await self.workers.spawn(self._children.fork_server, launch)

    async def _stop(self, action: Stop, transition: TransitionRecord) -> None:
        worker = self.workers.get(transition.model, action.device)
        if worker is not None and worker.instance == action.instance:
            await self._end(worker)

    async def _end(self, worker: LocalWorker) -> None:
        await self.workers.stop(worker)
        if self.workers.get(worker.model, worker.device) is worker:
            await self.workers.forget(worker.model, worker.device)
            self._publisher.delete(self._keys.worker(worker.model, worker.device))

    async def _free(self, action: Free, transition: TransitionRecord) -> float:
        worker = self.workers.get(transition.model, action.device)
        if worker is not None:
            await self.workers.forget(transition.model, action.device)
        self._publisher.delete(self._keys.worker(transition.model, action.device))
        return float(await self.memory.free_model(transition.model, action.device.device))

    def _answer(self, action: Answer, transition: TransitionRecord) -> None:
        record = AckRecord(
            operation_id=action.operation_id,
            node=self._name,
            phase=action.phase,
            ok=action.ok,
            error=action.error,
            figures=action.figures,
        )
        self._answered[action.operation_id] = action.phase
        key = self._keys.ack(action.operation_id, self._name)
        self._publisher.put(key, to_json(record), leased=False)
        log.info(
            "%s of %s answered: %s %s",
            action.phase,
            transition.operation_id,
            "ok" if action.ok else "failed",
            action.error,
        )

    # ------------------------------------------------------------------ deaths

    def _on_worker_change(self, worker: LocalWorker) -> None:
        """A worker reported, said something, or died."""
        if self.workers.get(worker.model, worker.device) is worker and not worker.is_stopping:
            key = self._keys.worker(worker.model, worker.device)
            self._publisher.put(key, to_json(worker.record()))
            if worker.state is WorkerState.LOST:
                self._on_loss(worker.record())
        self._picture.changes.notify()

    def _on_loss(self, record: WorkerRecord) -> None:
        subject = f"worker/{record.model}/{record.device}"
        message = f"instance {record.instance} in epoch {record.epoch}: {record.message}"
        self._events.tell("error", subject, "WorkerLost", message)
        self._tell_of_loss(record.model, record.device, record.instance, record.epoch)

    def _tell_of_loss(self, model: str, device: DeviceId, instance: int, epoch: int) -> None:
        """Let this node's workers stop waiting for a dead peer, once per death."""
        if (model, device, instance) in self._losses_told:
            return
        self._losses_told.add((model, device, instance))
        if len(self._losses_told) > 10_000:  # deaths of months; forgetting repeats a harmless word
            self._losses_told.clear()
        epochs = {epoch} | self._epochs_joining(model, device, instance)
        for worker in self.workers.of(model):
            if worker.device != device and not worker.is_dead:
                for lost in sorted(epochs):
                    self._in_background(_tell_peer_lost(worker, lost))

    def _epochs_joining(self, model: str, device: DeviceId, instance: int) -> set[int]:
        """Epochs in preparation that the dead worker was to be a part of."""
        return {
            transition.new.epoch
            for transition in self._picture.transitions.values()
            if transition.model == model
            and (device, instance)
            in zip(transition.new.ranks, transition.new.instances, strict=True)
        }

    async def end_all_as_lost(self, message: str) -> None:
        """Kill every worker at once and report each as lost."""
        for worker in self.workers:
            worker.message = message
        alive = [worker for worker in self.workers if not worker.is_dead]
        ends = [asyncio.to_thread(end_process, worker.process, 0.0) for worker in alive]
        await asyncio.gather(*ends)

    # ------------------------------------------------------------------ sweeping

    async def sweep(self) -> None:
        """End and free what belongs to nobody, report what is missing; about once a second."""
        if not self._picture.is_complete:
            return
        findings = sweep(await self._scene())
        for finding in self._lasting.filter(findings, time.monotonic()):
            await self._mend(finding)

    async def _scene(self) -> Scene:
        held = await self.memory.holders()
        workers = list(self.workers)
        return Scene(
            node=self._name,
            placements=self._picture.placements,
            busy=self._picture.busy_models(),
            alive={(w.model, w.device): w.instance for w in workers if not w.is_dead},
            known=frozenset(self._known_losses(workers)),
            held=frozenset((model, DeviceId(self._name, device)) for model, device in held),
            prepared={
                (w.model, w.device): w.report.prepared_operation
                for w in workers
                if w.report.prepared_operation and not w.is_dead
            },
        )

    def _known_losses(self, workers: Iterable[LocalWorker]) -> Iterable[tuple[str, DeviceId, int]]:
        for worker in workers:
            if worker.is_dead:
                yield worker.model, worker.device, worker.instance
        for record in self._picture.workers.values():
            if record.state is WorkerState.LOST and record.device.node == self._name:
                yield record.model, record.device, record.instance

    async def _mend(self, finding: Finding) -> None:
        match finding:
            case Stray(model, device):
                worker = self.workers.get(model, device)
                if worker is not None:
                    log.warning("ending worker %s %s: no placement names it", model, device)
                    await self._end(worker)
            case Leftover(model, device):
                pages = await self.memory.free_model(model, device.device)
                log.warning("freed %d pages of %s on %s: left over", pages, model, device)
            case Stale(model, device, operation_id):
                worker = self.workers.get(model, device)
                if worker is not None:
                    log.warning("worker %s %s forfeits %s: it is over", model, device, operation_id)
                    await worker.control.call("forfeit", operation_id=operation_id)
            case Missing():
                self._report_missing(finding)

    def _report_missing(self, missing: Missing) -> None:
        record = WorkerRecord(
            model=missing.model,
            rank=missing.rank,
            device=missing.device,
            instance=missing.instance,
            epoch=missing.epoch,
            state=WorkerState.LOST,
            address="",
            pid=0,
            message="no such worker runs on its node",
        )
        self._publisher.put(self._keys.worker(missing.model, missing.device), to_json(record))
        self._on_loss(record)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _tell_peer_lost(worker: LocalWorker, epoch: int) -> None:
    try:
        await worker.control.call("peer_lost", epoch=epoch)
    except MoectlError as error:
        if not worker.is_dead:
            log.warning("worker %s %s: %s", worker.model, worker.device, error.message)
