"""A real fleet for gateway tests: etcd, an agent with HMM, fork server and workers, the demo model.

In the test's own process, over the same etcd: the controller's loop and the gateway.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import uvicorn

from moectl.agents.gateway.app import build_app
from moectl.agents.gateway.config import GatewayConfig
from moectl.controller.commit import Committer
from moectl.controller.config import Limits
from moectl.controller.loop import Identity, Loop
from moectl.controller.model_facts import FactsReader
from moectl.controller.observe import Mirror
from moectl.core.clock import SystemClock
from moectl.core.paths import INSTANCE_VARIABLE, processes_of_instance
from moectl.core.records import (
    Keys,
    Placement,
    SpecRecord,
    TokenRecord,
    WorkerRecord,
    from_json,
    to_json,
)
from moectl.core.spec import model_spec_from_plain, to_plain
from moectl.core.store.embedded import EmbeddedEtcd
from moectl.core.store.etcd import EtcdStore
from moectl.core.transitions import WorkerState

MODEL = Path(__file__).parents[2] / "clusters" / "models" / "demo"
TOKEN, SECRET = "tok-e2e", "5ec2e7"
DEVICES = ("d0", "d1", "d2")
SETTLE_S = 60.0


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


class Fleet:
    """Everything under test, and the questions that tests ask of it."""

    def __init__(self, folder):
        self.folder, self.app = folder, None
        self.instance = f"e2e-gateway-{os.getpid()}-{folder.name}"
        self.node_dir, self.keys = folder / "n1", Keys("e2e")
        client_port, peer_port = free_ports(2)
        self.etcd = EmbeddedEtcd(folder / "etcd", client_port, peer_port, folder / "etcd.log")
        self.etcd_process = self.agent = self.store = None
        self.url = ""
        self.secret_file = folder / "internal.key"
        self.secret_file.write_text(SECRET)

    async def start_etcd(self):
        self.etcd_process = self.etcd.start()
        await self.etcd.wait_healthy()

    def start_agent(self):
        devices = [
            {"id": name, "kind": "cpu", "hbm_bytes": 96 << 20, "page_bytes": 16 << 10}
            for name in DEVICES
        ]
        config = {
            "node": {"name": "n1", "address": "127.0.0.11", "devices": devices},
            "cluster": "e2e",
            "etcd": [self.etcd.endpoint],
            "node_dir": str(self.node_dir),
            "secret_file": str(self.secret_file),
            "instance": self.instance,
            "lease_ttl_s": 2.0,
        }
        path = self.folder / "agent.json"
        path.write_text(json.dumps(config))
        argv = [sys.executable, "-P", "-m", "moectl.agents.agent", "--config", str(path)]
        environment = {**os.environ, INSTANCE_VARIABLE: self.instance}
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)

    async def declare(self, width):
        """Write the model's spec at a width, as the API does."""
        key = self.keys.spec("Model", "chat")
        plain = {"source": {"path": str(MODEL)}, "parallelism": {"experts": width}}
        plain |= {"memory": {"kvPerDevice": "8MiB"}, "engine": {"maxContext": 1024}}
        plain = to_plain(model_spec_from_plain(plain))
        known = await self.store.get(key)
        generation = 1
        if known is not None:
            old = from_json(SpecRecord, known.value)
            generation = old.generation + (old.spec != plain)
        operation = f"to-{width}-{generation}"
        record = SpecRecord("Model", "chat", generation, plain, operation, time.time(), "test")
        await self.store.put(key, to_json(record))

    async def workers(self):
        listed = await self.store.get_prefix(self.keys.workers)
        return [from_json(WorkerRecord, kv.value) for kv in listed.kvs]

    async def is_settled(self, width, epoch_after=-1):
        """Whether the placement has the width, all of it serves, and nothing is under way."""
        found = await self.store.get(self.keys.placement("chat"))
        if found is None or await self.store.get(self.keys.active_of("chat")) is not None:
            return False
        placed = from_json(Placement, found.value)
        serving = [
            worker
            for worker in await self.workers()
            if worker.state is WorkerState.SERVING and worker.epoch == placed.epoch
        ]
        return placed.width == len(serving) == width and placed.epoch > epoch_after

    async def epoch(self):
        found = await self.store.get(self.keys.placement("chat"))
        return from_json(Placement, found.value).epoch

    async def until_settled(self, width, epoch_after=-1):
        await self.until(lambda: self.is_settled(width, epoch_after))

    async def until(self, question, timeout_s=SETTLE_S):
        end_s = time.monotonic() + timeout_s
        while not await question():
            if time.monotonic() > end_s:
                raise AssertionError(f"not within {timeout_s:g} s:\n{await self.told()}")
            await asyncio.sleep(0.05)

    async def told(self):
        """What the store and the agent's log say, for who wants to know what did not happen."""
        listed = await self.store.get_prefix(self.keys.root)
        records = [f"{kv.key} {kv.value.decode(errors='replace')[:600]}" for kv in listed.kvs]
        log = (self.folder / "agent.log").read_text(errors="replace").splitlines()
        return "\n".join([*records, *log[-60:]])


@contextlib.asynccontextmanager
async def controller(fleet):
    """The controller's loop in this process."""
    clock = SystemClock()
    mirror = Mirror(fleet.store, fleet.keys, clock)
    committer = Committer(fleet.store, fleet.keys, clock)
    loop = Loop(mirror, committer, Identity("e2e"), Limits(), FactsReader())
    tasks = [asyncio.create_task(mirror.run()), asyncio.create_task(loop.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def gateway(fleet, **settings):
    """The gateway in this process, on a free port."""
    config = GatewayConfig(
        cluster="e2e",
        etcd=(fleet.etcd.endpoint,),
        secret_file=str(fleet.secret_file),
        **settings,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fleet.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        app = fleet.app = build_app(config, fleet.store, fleet.url)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, lifespan="on")
        )
        task = asyncio.create_task(server._serve(sockets=[listener]))  # no signal handlers
        try:
            yield
        finally:
            server.should_exit = True
            await task


@contextlib.asynccontextmanager
async def running_fleet(folder, width, **settings):
    """Everything up and the model served at a width; ended by process id whatever happens."""
    fleet = Fleet(folder)
    await fleet.start_etcd()
    fleet.store = EtcdStore([fleet.etcd.endpoint])
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    token = TokenRecord("e2e", "operator", "default", 0.0)
    await fleet.store.put(fleet.keys.token(digest), to_json(token))
    fleet.start_agent()
    try:
        async with controller(fleet), gateway(fleet, **settings):
            await fleet.declare(width)
            await fleet.until_settled(width)
            yield fleet
    finally:
        fleet.agent.send_signal(signal.SIGTERM)
        fleet.agent.wait(20)
        await fleet.store.close()
        fleet.etcd_process.terminate()
        fleet.etcd_process.wait(10)
        for process in processes_of_instance(fleet.instance):
            os.kill(process.pid, signal.SIGKILL)
