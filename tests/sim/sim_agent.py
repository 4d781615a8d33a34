"""Agents as the controller sees them: they register, report workers and answer phases.

A `Machine` is what survives an agent: worker processes with the pages of their device. A `SimAgent`
is the process that reports them. All randomness comes from the world's one generator.
"""

import random
from dataclasses import dataclass, field

from sim_parse import parse

from moectl.core.errors import LeaseLostError, StoreError
from moectl.core.plan import DeviceId, Phase
from moectl.core.records import (
    AckRecord,
    DeviceRecord,
    Keys,
    NodeRecord,
    TransitionRecord,
    WorkerRecord,
    to_json,
)
from moectl.core.store.memory import MemoryStore
from moectl.core.transitions import TERMINAL_PHASES, WorkerState

LEASE_TTL_S = 5.0


@dataclass
class Worker:
    """A worker process. `epoch` 0: it is prepared and has not served yet."""

    model: str
    device: DeviceId
    rank: int
    instance: int
    epoch: int = 0
    is_alive: bool = True


@dataclass
class Temper:
    """How a node misbehaves while faults last."""

    fails_prepare: float = 0.0
    stays_mute: float = 0.0
    delay_s_max: float = 1.0


@dataclass
class Machine:
    """A computer: its devices, and the workers on them, whether an agent looks or not."""

    name: str
    devices: tuple[str, ...]
    hbm_bytes: int
    is_on: bool = True
    workers: dict[tuple[str, DeviceId], Worker] = field(default_factory=dict)

    def crash(self) -> None:
        """Power off: workers and pages are gone."""
        self.is_on = False
        self.workers.clear()


class SimAgent:
    """One run of an agent process on a machine."""

    def __init__(
        self, machine: Machine, groups: "Groups", store: MemoryStore, keys: Keys, temper: Temper
    ) -> None:
        self.machine = machine
        self._groups = groups
        self._store = store
        self._keys = keys
        self._temper = temper
        self._lease = None
        self._answers: dict[tuple[str, Phase], float] = {}
        self._reported: dict[str, str] = {}

    async def stop(self) -> None:
        """Die without a word: the lease runs out by itself."""
        if self._lease is not None:
            await self._lease.stop()

    async def step(self, now: float, random_: random.Random) -> None:
        """Look once, act once."""
        try:
            if self._lease is None or self._lease.lost.is_set():
                await self._register(now)
            transitions = await self._transitions()
            for record in transitions:
                await self._act(record, now, random_)
            await self._report(await self._tidy(transitions))
        except (LeaseLostError, StoreError):
            self._lease = None

    async def _register(self, now: float) -> None:
        self._lease = await self._store.lease(LEASE_TTL_S)
        self._lease.start()
        self._reported.clear()
        devices = tuple(
            DeviceRecord(name, "cpu", self.machine.hbm_bytes, 16384)
            for name in self.machine.devices
        )
        record = NodeRecord(self.machine.name, "127.0.0.1", devices, "127.0.0.1:1", 1, now)
        await self._store.put(
            self._keys.node(self.machine.name), to_json(record), lease=self._lease.id
        )

    async def _transitions(self) -> list[TransitionRecord]:
        active = await self._store.get_prefix(self._keys.active)
        records = []
        for kv in active.kvs:
            found = await self._store.get(self._keys.transition(kv.text))
            record = parse(TransitionRecord, found.value) if found is not None else None
            if record is not None and record.phase not in TERMINAL_PHASES:
                records.append(record)
        return records

    def _is_mine(self, device: DeviceId) -> bool:
        return device.node == self.machine.name

    async def _act(self, record: TransitionRecord, now: float, random_: random.Random) -> None:
        old = record.old.ranks if record.old else ()
        if not any(self._is_mine(device) for device in (*old, *record.new.ranks)):
            return
        key = (record.operation_id, record.phase)
        if key not in self._answers:
            is_mute = random_.random() < self._temper.stays_mute
            delay_s = random_.uniform(0, self._temper.delay_s_max)
            self._answers[key] = float("inf") if is_mute else now + delay_s
            self._do(record)
        if now < self._answers[key]:
            return
        acks = await self._store.get(self._keys.ack(record.operation_id, self.machine.name))
        if acks is not None and parse(AckRecord, acks.value).phase is record.phase:
            return
        ok = record.phase is not Phase.PREPARE or random_.random() >= self._temper.fails_prepare
        ack = AckRecord(
            record.operation_id,
            self.machine.name,
            record.phase,
            ok,
            "" if ok else "it would not",
            {"bytes_copied": 1.0},
        )
        await self._store.put(self._keys.ack(record.operation_id, self.machine.name), to_json(ack))

    def _do(self, record: TransitionRecord) -> None:
        {
            Phase.PREPARE: self._prepare,
            Phase.COMMIT: self._commit,
            Phase.RETIRE: self._retire,
            Phase.FORFEIT: self._forfeit,
        }[record.phase](record)

    def _prepare(self, record: TransitionRecord) -> None:
        for rank, device in enumerate(record.new.ranks):
            if not self._is_mine(device):
                continue
            key = (record.model, device)
            worker = self.machine.workers.get(key)
            instance = record.new.instances[rank]
            if worker is None or worker.instance != instance:
                self.machine.workers[key] = Worker(record.model, device, rank, instance)

    def _commit(self, record: TransitionRecord) -> None:
        self._groups.remember(record)
        for rank, device in enumerate(record.new.ranks):
            worker = self.machine.workers.get((record.model, device))
            if worker is not None and worker.instance == record.new.instances[rank]:
                worker.epoch, worker.rank = record.new.epoch, rank

    def _retire(self, record: TransitionRecord) -> None:
        self._commit(record)
        for device in record.old.ranks if record.old else ():
            if self._is_mine(device) and device not in record.new.ranks:
                self.machine.workers.pop((record.model, device), None)

    def _forfeit(self, record: TransitionRecord) -> None:
        before = (
            dict(zip(record.old.ranks, record.old.instances, strict=True)) if record.old else {}
        )
        for rank, device in enumerate(record.new.ranks):
            key = (record.model, device)
            worker = self.machine.workers.get(key)
            is_new = before.get(device) != record.new.instances[rank]
            if worker is not None and is_new and worker.instance == record.new.instances[rank]:
                del self.machine.workers[key]

    async def _tidy(self, transitions: list[TransitionRecord]) -> set[str]:
        """End workers that no placement and no transition knows."""
        changing = {t.model for t in transitions if t.phase not in TERMINAL_PHASES}
        for (model, device), worker in list(self.machine.workers.items()):
            if model in changing:
                continue
            placed = await self._store.get(self._keys.placement(model))
            text = placed.text if placed else ""
            if f'"{device}"' not in text:
                del self.machine.workers[(model, device)]
            elif worker.epoch == 0:
                worker.is_alive = False
        return changing

    async def _report(self, changing: set[str]) -> None:
        lease_id = self._lease.id
        wanted = {}
        for (model, device), worker in self.machine.workers.items():
            record = WorkerRecord(
                model,
                worker.rank,
                device,
                worker.instance,
                worker.epoch,
                self._groups.state_of(worker),
                "127.0.0.1:2",
                1,
            )
            wanted[self._keys.worker(model, device)] = to_json(record)
        for key, text in wanted.items():
            if self._reported.get(key) != text:
                await self._store.put(key, text, lease=lease_id)
        for key in set(self._reported) - set(wanted):
            await self._store.delete(key)
        self._reported = wanted


class Groups:
    """The process groups there are: who is in the group of an epoch, and is it whole?"""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self._machines = machines
        self._members: dict[tuple[str, int], tuple[tuple[DeviceId, int], ...]] = {}

    def remember(self, record: TransitionRecord) -> None:
        members = tuple(zip(record.new.ranks, record.new.instances, strict=True))
        self._members[(record.model, record.new.epoch)] = members

    def state_of(self, worker: Worker) -> WorkerState:
        if not worker.is_alive:
            return WorkerState.LOST
        if worker.epoch == 0:
            return WorkerState.PREPARED
        members = self._members.get((worker.model, worker.epoch), ())
        is_whole = all(self._is_there(worker.model, device, i) for device, i in members)
        return WorkerState.SERVING if is_whole else WorkerState.PARKED

    def _is_there(self, model: str, device: DeviceId, instance: int) -> bool:
        worker = self._machines[device.node].workers.get((model, device))
        return worker is not None and worker.is_alive and worker.instance == instance
