"""How does one node carry out what the fleet decided? Look, decide, act, tell.

`Node` holds the parts together: the picture of the store, the workers of this node, the executor's
decisions and the performer of actions. It writes worker records, acknowledgements and events
through the publisher, which never blocks it; with the store away everything here goes on.
"""

import logging
import os
from collections.abc import Collection

from ..core.paths import NodeHome
from ..core.plan import DeviceId, Phase
from ..core.priority import Bystanders
from ..core.records import AckRecord, Keys, TransitionRecord, to_json
from ..core.transitions import WorkerState
from .actions import Answer, Free, Spawn, Stop
from .children import FORK_SERVER, Children
from .config import AgentConfig
from .events import EventLog
from .executor import Seen, decide
from .launch.orders import WorkerLaunch
from .losses import Losses
from .memory_book import MemoryBook
from .mend import Mender
from .perform import Hands, Performer
from .picture import Picture
from .publish import Publisher
from .sweep import Missing
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
        children.fork_from_worker = self.workers.fork_server
        self._publisher = publisher
        self._events = events
        self._answered: dict[str, Phase] = {}
        self._bystanders = Bystanders(lambda: (os.getpid(), *children.pids()))
        self._losses = Losses(self._name, self._keys, picture, publisher, events)
        self._mender = Mender(
            self._name, picture, self.workers, self.memory, self._losses, self._end
        )
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
        await self._losses.close()
        await self.workers.close()
        await self.memory.close()

    async def sweep(self, held: Collection[tuple[str, str]] | None) -> None:
        """Mend what is amiss between transitions; about once a second. See `Mender.sweep`."""
        await self._mender.sweep(held)

    async def keep_memory(self) -> None:
        """Return when the HMM runs; see `Mender.keep_memory`."""
        await self._mender.keep_memory(self._children, self._events)

    def _turn(self) -> None:
        transitions = self._picture.transitions
        for transition in list(transitions.values()):
            self._performer.start(transition, decide(transition, self._seen(transition)))
        self._performer.forget_except(transitions)
        self._bystanders.look(is_pressing=any(not t.is_gentle for t in transitions.values()))
        self._answered = {k: v for k, v in self._answered.items() if k in transitions}
        self._losses.hear(self.workers)

    def _seen(self, transition: TransitionRecord) -> Seen:
        name = transition.operation_id
        return Seen(
            node=self._name,
            workers={worker.device: worker.seen() for worker in self.workers.of(transition.model)},
            outcomes=self._performer.outcomes(name),
            answered=self._answered.get(name),
        )

    async def _spawn(self, action: Spawn, transition: TransitionRecord) -> None:
        await self.keep_memory()  # deaths of helpers are noticed once a second only
        await self._children.ensure(FORK_SERVER)
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
            is_gentle=transition.is_gentle,
            transition=self._performer.text_of(transition),
        )
        await self.workers.spawn(self._children.fork_server, launch)

    async def _stop(self, action: Stop, transition: TransitionRecord) -> None:
        worker = self.workers.get(transition.model, action.device)
        if worker is not None and worker.instance == action.instance:
            await self._end(worker)
            self._restore_loss(action.device, transition)

    def _restore_loss(self, device: DeviceId, transition: TransitionRecord) -> None:
        """A heal was undone: the rank it was to replace is as lost as before."""
        old = transition.old
        rank = None if old is None else old.rank_of(device)
        if transition.phase is Phase.FORFEIT and old is not None and rank is not None:
            missing = Missing(old.model, device, old.instances[rank], rank, old.epoch)
            self._losses.report_missing(missing, self.workers)

    async def _end(self, worker: LocalWorker) -> None:
        await self.workers.stop(worker)
        if self.workers.get(worker.model, worker.device) is worker:
            await self.workers.forget(worker.model, worker.device)
            self._publisher.delete(self._keys.worker(worker.model, worker.device))

    async def _free(self, action: Free, transition: TransitionRecord) -> float:
        model, device = transition.model, action.device
        pages = await self.memory.free_model(model, device.device)
        await self.workers.forget(model, device)
        self._publisher.delete(self._keys.worker(model, device))
        return float(pages)

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

    def _on_worker_change(self, worker: LocalWorker) -> None:
        """A worker reported, said something, or died."""
        if self.workers.get(worker.model, worker.device) is worker and not worker.is_stopping:
            if worker.state is WorkerState.LOST:
                self._losses.report(worker.record(), self.workers)
            else:
                key = self._keys.worker(worker.model, worker.device)
                self._publisher.put(key, to_json(worker.record()))
        self._picture.changes.notify()
