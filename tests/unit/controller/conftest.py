"""A fleet as records, built by hand: what the pure code of the controller is given in its tests."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from moectl.controller.api.services import Services
from moectl.controller.auth import digest_of
from moectl.controller.commit import Committer
from moectl.controller.config import Limits
from moectl.controller.loop import Identity, Loop
from moectl.controller.observe import Mirror, Seen, Snapshot
from moectl.core.clock import SystemClock
from moectl.core.facts import ModelFacts
from moectl.core.plan import DeviceId, Phase, Placement, TransitionKind
from moectl.core.records import (
    AckRecord,
    DeviceRecord,
    Keys,
    ModelStatus,
    NodeRecord,
    SpecRecord,
    TokenRecord,
    TransitionRecord,
    WorkerRecord,
    to_json,
)
from moectl.core.spec import model_spec_from_plain, to_plain
from moectl.core.store.memory import MemoryStore
from moectl.core.transitions import WorkerState
from moectl.placement.memory_model import Demand, DeviceMemory
from moectl.placement.transition import TransitionInput, plan_transition

FACTS = ModelFacts(
    architecture="Qwen3MoeForCausalLM",
    layers=2,
    moe_layers=(0, 1),
    experts_per_layer=(8, 8),
    experts_per_token=2,
    hidden=8,
    expert_hidden=8,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocab=16,
    context_tokens=64,
    tied_embeddings=True,
    shared_elements=1000,
)
NOW = 1000.0


@dataclass
class Fleet:
    """Two nodes of two devices and, if asked for, model `chat`. Change it, then take `snapshot`."""

    keys: Keys = field(default_factory=lambda: Keys("test"))
    limits: Limits = field(default_factory=Limits)
    parts: dict = field(default_factory=dict)
    facts: dict = field(default_factory=lambda: {"/models/chat": FACTS})
    revision: int = 100

    def __post_init__(self) -> None:
        names = ("specs", "nodes", "workers", "placements", "transitions", "active", "acks")
        self.parts = {name: {} for name in (*names, "status", "tokens", "events", "stats")}
        for name in ("n1", "n2"):
            self.add_node(name)

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(
            keys=self.keys,
            revision=self.revision,
            **{name: dict(part) for name, part in self.parts.items()},
        )

    def seen(self, value: object) -> Seen:
        self.revision += 1
        return Seen(value, self.revision)

    def add_node(self, name: str, hbm: int = 64 << 20) -> None:
        devices = tuple(DeviceRecord(device, "cpu", hbm, 16384) for device in ("d0", "d1"))
        self.parts["nodes"][name] = NodeRecord(name, "127.0.0.1", devices, f"{name}:1", 1, NOW)

    def lose_node(self, name: str) -> None:
        """Its lease is gone, and with it all that its agent reported."""
        del self.parts["nodes"][name]
        for workers in self.parts["workers"].values():
            for device in [device for device in workers if device.node == name]:
                del workers[device]

    def declare(self, experts: int, generation: int = 1, name: str = "chat") -> None:
        spec = model_spec_from_plain(
            {
                "source": {"path": "/models/chat"},
                "parallelism": {"experts": experts},
                "memory": {"kvPerDevice": "1MiB"},
            }
        )
        record = SpecRecord(
            "Model", name, generation, to_plain(spec), f"op-{generation}", NOW - 10, "test"
        )
        self.parts["specs"][("Model", name)] = self.seen(record)

    def plan(self, width: int, old: Placement | None = None) -> object:
        devices = [DeviceId(n, d) for n in sorted(self.parts["nodes"]) for d in ("d0", "d1")]
        memories = tuple(DeviceMemory(device, 64 << 20, 16384) for device in devices)
        kind = TransitionKind.SCALE if old else TransitionKind.CREATE
        demand = Demand((8, 8), 768, 4000, 1 << 20)
        is_gentle = kind is TransitionKind.SCALE
        return plan_transition(
            TransitionInput(kind, "chat", demand, memories, old, width, is_gentle=is_gentle)
        )

    def place(self, width: int) -> Placement:
        """`chat` as it is after a CREATE: placed, with a serving worker on each rank."""
        placement = self.plan(width).new
        self.parts["placements"]["chat"] = self.seen(placement)
        for rank, device in enumerate(placement.ranks):
            self.report(device, rank, placement.epoch)
        return placement

    def report(
        self,
        device: DeviceId,
        rank: int,
        epoch: int = 1,
        state: WorkerState = WorkerState.SERVING,
        instance: int = 1,
    ) -> None:
        record = WorkerRecord("chat", rank, device, instance, epoch, state, "127.0.0.1:1", 1)
        self.parts["workers"].setdefault("chat", {})[device] = record

    def change_state(self, device: DeviceId, state: WorkerState) -> None:
        workers = self.parts["workers"]["chat"]
        workers[device] = dataclasses.replace(workers[device], state=state)

    def begin(
        self, width: int, phase: Phase = Phase.PREPARE, operation_id: str = "op-2"
    ) -> TransitionRecord:
        """A running SCALE of `chat` in a phase."""
        placed = self.parts["placements"].get("chat")
        plan = self.plan(width, placed.value if placed else None)
        record = TransitionRecord(
            operation_id=operation_id,
            model="chat",
            kind=plan.kind,
            phase=phase,
            generation=2,
            old=plan.old,
            new=plan.new,
            steps=plan.steps,
            prediction=plan.prediction,
            accepted_at=NOW - 2,
            phase_at={"prepare": NOW - 1, str(phase): NOW - 1},
            deadline_at=NOW + 30,
            store_address="n1:1",
            model_spec={"source": {"path": "/models/chat"}, "parallelism": {"experts": width}},
        )
        self.parts["transitions"][operation_id] = self.seen(record)
        self.parts["active"]["chat"] = self.seen(operation_id)
        return record

    def answer(
        self, node: str, phase: Phase, ok: bool = True, operation_id: str = "op-2", **figures: float
    ) -> None:
        ack = AckRecord(operation_id, node, phase, ok, "" if ok else "cannot", figures)
        self.parts["acks"].setdefault(operation_id, {})[node] = ack

    def tell_status(self, status: ModelStatus) -> None:
        self.parts["status"]["chat"] = self.seen(status)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


class FixedFacts:
    """The same facts, whatever the folder."""

    def __init__(self, facts: object) -> None:
        self._facts = facts

    async def read_all(self, folders) -> dict:
        return dict.fromkeys(folders, self._facts)


@pytest.fixture
async def services(fleet) -> AsyncIterator[Services]:
    """The parts of a controller with its loop running, over a store in memory."""
    async with controller_parts(fleet, with_loop=True) as parts:
        yield parts


@pytest.fixture
async def calm_services(fleet) -> AsyncIterator[Services]:
    """The same with nobody acting on what is declared."""
    async with controller_parts(fleet, with_loop=False) as parts:
        yield parts


@contextlib.asynccontextmanager
async def controller_parts(fleet, with_loop: bool) -> AsyncIterator[Services]:
    facts = FixedFacts(fleet.facts["/models/chat"])
    clock = SystemClock()
    keys, store = Keys("test"), MemoryStore(clock)
    mirror = Mirror(store, keys, clock)
    committer = Committer(store, keys, clock)
    loop = Loop(mirror, committer, Identity("c"), Limits(), facts)
    parts = Services("test", mirror, committer, clock, Limits(), loop, facts)
    for role in ("viewer", "operator", "admin"):
        record = TokenRecord(role, role, "default", 0.0)
        await store.put(keys.token(digest_of(f"secret-{role}")), to_json(record))
    devices = tuple(DeviceRecord(d, "cpu", 64 << 20, 16384) for d in ("d0", "d1"))
    for name in ("n1", "n2"):
        node = NodeRecord(name, "127.0.0.1", devices, f"{name}:1", 1, 0.0)
        await store.put(keys.node(name), to_json(node))
    tasks = [asyncio.create_task(mirror.run())]
    if with_loop:
        tasks.append(asyncio.create_task(loop.run()))
    await mirror.reach(5, 5)
    yield parts
    parts.stopping.set()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()
