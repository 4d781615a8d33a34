"""A whole cluster in one process and one clock: real store, mirror, loop and API decisions;
simulated machines and agents. Everything follows from the seed."""

import asyncio
import contextlib
import random
from collections.abc import Iterable

from sim_agent import Groups, Machine, SimAgent, Temper
from sim_checkers import Referee

from moectl.controller import intents
from moectl.controller.api.services import Services
from moectl.controller.commit import Committer
from moectl.controller.config import Limits
from moectl.controller.loop import Identity, Loop
from moectl.controller.observe import Mirror, Snapshot
from moectl.core.clock import SimClock
from moectl.core.facts import ModelFacts
from moectl.core.plan import DeviceId
from moectl.core.records import Keys, TransitionRecord
from moectl.core.store.memory import MemoryStore

FACTS = ModelFacts(
    architecture="Qwen3MoeForCausalLM",
    layers=3,
    moe_layers=(0, 1, 2),
    experts_per_layer=(8, 8, 8),
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
    config={
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 3,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 16,
        "max_position_embeddings": 64,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": True,
    },
)
MODEL_SPEC = {
    "source": {"path": "/models/chat"},
    "parallelism": {"experts": 2},
    "memory": {"kvPerDevice": "1MiB"},
}
STEP_S = 0.25


class FixedFacts:
    """The facts of one model, whatever the folder."""

    async def read_all(self, folders: Iterable[str]) -> dict:
        return dict.fromkeys(folders, FACTS)


class World:
    """Use as `async with World(seed) as world`."""

    def __init__(self, seed: int, nodes: int = 2, devices: int = 2) -> None:
        self.random = random.Random(seed)
        self.clock = SimClock()
        self.store = MemoryStore(self.clock)
        self.keys = Keys("sim")
        self.machines = {
            f"n{i}": Machine(f"n{i}", tuple(f"d{j}" for j in range(devices)), 64 << 20)
            for i in range(1, nodes + 1)
        }
        self.tempers = {name: Temper() for name in self.machines}
        self.agents: dict[str, SimAgent] = {}
        self.limits = Limits()
        self._groups = Groups(self.machines)
        self._controllers: list[asyncio.Task] = []
        self._operations = 0

    async def __aenter__(self) -> "World":
        self.referee = Referee(self.store, self.keys, FACTS.experts_per_layer)
        self.mirror = Mirror(self.store, self.keys, self.clock)
        self._mirror_task = asyncio.create_task(self.mirror.run())
        committer = Committer(self.store, self.keys, self.clock)
        self.services = Services(
            "sim", self.mirror, committer, self.clock, self.limits, None, FixedFacts()
        )
        for name in self.machines:
            self.start_agent(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill_controllers()
        for agent in self.agents.values():
            await agent.stop()
        self._mirror_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._mirror_task
        await self.referee.close()
        await self.store.close()

    def start_controller(self, store: object = None) -> None:
        self._controllers.append(asyncio.create_task(self._control(store or self.store)))

    async def _control(self, store: object) -> None:
        mirror = Mirror(store, self.keys, self.clock)
        following = asyncio.create_task(mirror.run())
        committer = Committer(store, self.keys, self.clock)
        identity = Identity(f"controller-{len(self._controllers)}", None, 3.0)
        try:
            await Loop(mirror, committer, identity, self.limits, FixedFacts()).run()
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

    async def kill_controllers(self) -> None:
        """At whatever await they stand."""
        doomed, self._controllers = self._controllers, []
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)

    @property
    def running_controllers(self) -> int:
        self._controllers = [task for task in self._controllers if not task.done()]
        return len(self._controllers)

    def start_agent(self, name: str) -> None:
        self.machines[name].is_on = True
        if name not in self.agents:
            self.agents[name] = SimAgent(
                self.machines[name], self._groups, self.store, self.keys, self.tempers[name]
            )

    async def kill_agent(self, name: str) -> None:
        agent = self.agents.pop(name, None)
        if agent is not None:
            await agent.stop()

    async def crash_machine(self, name: str) -> None:
        await self.kill_agent(name)
        self.machines[name].crash()

    def kill_worker(self, device: DeviceId, model: str = "chat") -> None:
        worker = self.machines[device.node].workers.get((model, device))
        if worker is not None:
            worker.is_alive = False

    async def run(self, seconds: float) -> None:
        """Let the world go on, agents looking at every step."""
        for _ in range(max(1, round(seconds / STEP_S))):
            for agent in list(self.agents.values()):
                await agent.step(self.clock.now(), self.random)
            await self.clock.advance(STEP_S)

    async def run_until(self, holds: object, limit_s: float) -> bool:
        """Until `holds(snapshot)`; False when it does not within the limit."""
        for _ in range(round(limit_s / STEP_S)):
            if holds(self.snapshot):
                return True
            await self.run(STEP_S)
        return holds(self.snapshot)

    @property
    def snapshot(self) -> Snapshot:
        return self.mirror.snapshot()

    async def apply(self, experts: int | str = 2, name: str = "chat") -> dict:
        spec = MODEL_SPEC | {"parallelism": {"experts": experts}}
        (declared,) = intents.parse_declarations([{"kind": "Model", "name": name, "spec": spec}])
        caller = self.caller()
        return await self._carry_out(lambda g: intents.decide_apply(declared, g, caller))

    async def scale(self, experts: str, operation_id: str = "", name: str = "chat") -> dict:
        caller = self.caller(operation_id)
        return await self._carry_out(lambda g: intents.decide_scale(name, experts, g, caller))

    async def delete(self, name: str = "chat") -> dict:
        caller = self.caller()
        return await self._carry_out(lambda g: intents.decide_delete("Model", name, g, caller))

    async def cancel(self, operation_id: str) -> dict:
        caller = self.caller()
        return await self._carry_out(lambda g: intents.decide_cancel(operation_id, g, caller))

    def caller(self, operation_id: str = "") -> intents.Caller:
        self._operations += 1
        return intents.Caller("test", self.clock.now(), operation_id or f"op-{self._operations}")

    async def _carry_out(self, decide: object) -> dict:
        """The API's own write path; time goes on while it waits for its mirror."""
        task = asyncio.create_task(self.services.carry_out(decide, "/models/chat"))
        while not task.done():
            await self.clock.advance(0.01)
        return task.result().body

    def is_settled(self, snapshot: Snapshot, model: str = "chat") -> bool:
        """No change runs, everybody serves, and the width is as declared or refused for good."""
        spec, placed = snapshot.model_spec(model), snapshot.placements.get(model)
        status = snapshot.status.get(model)
        if spec is None:
            return placed is None and status is None and model not in snapshot.active
        if placed is None or status is None or model in snapshot.active:
            return False
        ready = next(c for c in status.value.conditions if c.type == "Ready")
        wanted = spec.value.spec["parallelism"]["experts"]
        is_refused = status.value.failed_generation == spec.value.generation
        if wanted == "auto":
            wanted = status.value.desired_width
        return ready.status == "True" and (placed.value.width == wanted or is_refused)

    def last(self, model: str = "chat") -> TransitionRecord:
        return self.snapshot.history(model)[-1]
