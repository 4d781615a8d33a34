"""The fleet that the scale bench measures: how it comes up, is scaled, robbed, restarted and ended.

An embedded fleet like `moectl up` makes, in a home of its own that is removed afterwards. Acts only
through the API, like anyone else, and ends only processes that the fleet's run files name.
"""

import contextlib
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...agents.launch.spare import read_spare
from ...core.errors import MoectlError
from ...core.paths import (
    Home,
    NodeHome,
    end_process,
    is_alive,
    read_run_files,
    remove_run_file,
    signal_process,
    wait_gone,
)
from ...core.plan import Pace
from ...memory.hmm.client import HmmClient
from .. import waiting
from ..client import ApiClient
from ..demo.residency import Residency
from ..demo.traffic import Target
from ..fleet_view import ModelView, TransitionView
from ..instance import Instance, read_token
from ..interrupts import interruptible, shielded
from ..local import UpOptions, bring_up
from ..teardown import tear_down

MODEL = "chat"
SCALE_DEADLINE_S = 120.0
UP_DEADLINE_S = 240.0
TOUCHED_DEADLINE_S = 180.0
STATS_S = 1.3  # agents publish about once a second
NODE_ADDRESSES = ("127.0.0.11", "127.0.0.12")

Report = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which model is served on which devices."""

    folder: Path
    nodes: int = 1
    devices_per_node: int = 4
    hbm: str = "96MiB"
    page: str = "16KiB"
    kv: str = "32MiB"
    precision: str = "reproducible"
    is_random: bool = False  # weights that no training has touched

    def text(self, width: int) -> str:
        """The YAML of the fleet with the model at a width."""
        devices = ", ".join(
            f"{{id: d{index}, kind: cpu, hbm: {self.hbm}, pageSize: {self.page}}}"
            for index in range(self.devices_per_node)
        )
        nodes = "".join(
            f"    - {{name: n{number}, address: {address}, devices: [{devices}]}}\n"
            for number, address in enumerate(NODE_ADDRESSES[: self.nodes], 1)
        )
        return (
            "apiVersion: moectl.dev/v1\nkind: Cluster\nmetadata: {name: bench}\n"
            f"spec:\n  nodes:\n{nodes}---\n"
            f"apiVersion: moectl.dev/v1\nkind: Model\nmetadata: {{name: {MODEL}}}\nspec:\n"
            f'  source: {{path: "{self.folder}"}}\n  parallelism: {{experts: {width}}}\n'
            f"  memory: {{kvPerDevice: {self.kv}}}\n  precision: {self.precision}\n"
        )


class QuietProgress:
    """A `Progress` that hands part names on to the bench's reporter."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __enter__(self) -> "QuietProgress":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start(self, part: str, detail: str = "") -> None:
        """A part begins."""
        self._report("fleet", f"{part} {detail}".strip())

    def end(self, part: str, outcome: str, detail: str = "") -> None:
        """A part ended; nobody needs to know."""


class BenchFleet:
    """One running fleet with one model."""

    def __init__(self, home: Home, shape: Shape, report: Report) -> None:
        self.home, self.shape = home, shape
        self._progress = QuietProgress(report)
        self._report = report
        self.instance: Instance | None = None
        self._client: ApiClient | None = None

    @property
    def client(self) -> ApiClient:
        """The controller."""
        if self._client is None:
            raise MoectlError("the bench's fleet is not up")
        return self._client

    def up(self, width: int, *, with_models: bool) -> float:
        """Start what is missing; returns the seconds that it took."""
        spec = self.home.root / f"bench-{width}.yaml"
        spec.write_text(self.shape.text(width), encoding="utf-8")
        began = time.monotonic()
        options = UpOptions(
            spec=str(spec),
            api_port=0,
            gateway_port=0,
            etcd_port=0,
            with_models=with_models,
            deadline_s=UP_DEADLINE_S,
        )
        self.instance = bring_up(self.home, options, self._progress).instance
        seconds = time.monotonic() - began
        if self._client is None:
            self._client = ApiClient(self.instance.api_url, read_token(self.home))
        return seconds

    def down(self) -> None:
        """End every process."""
        if self._client is not None:
            self._client.close()
        with shielded():
            tear_down(self.home, keep_logs=True, report=lambda role, outcome: None)

    def target(self) -> Target:
        """Where readers ask."""
        assert self.instance is not None
        return Target(self.instance.gateway_url, read_token(self.home), MODEL)

    def residency(self) -> Residency:
        """A sampler of everything that the model holds on all nodes, promised pages too."""
        return Residency(self._hmm_sockets(), MODEL, held_bytes)

    def until_touched(self) -> None:
        """Wait until free pages have their memory, as they have some seconds after a node starts.

        Touching them takes what the cores have left, and a transition that comes before pays for
        fresh pages itself.
        """
        self._report("fleet", "free pages get their memory")
        with contextlib.ExitStack() as stack:
            hmms = [stack.enter_context(HmmClient(at, "bench")) for at in self._hmm_sockets()]

            def is_done() -> bool:
                states = [device["pretouch"] for hmm in hmms for device in hmm.usage()]
                return "touching" not in states

            waiting.wait_until("memory of free pages", TOUCHED_DEADLINE_S, is_done, poll_s=0.25)

    def _hmm_sockets(self) -> list[Path]:
        return [home.hmm_socket for home in self._node_homes()]

    def _node_homes(self) -> list[NodeHome]:
        assert self.instance is not None
        return [self.home.node(str(node["name"])) for node in self.instance.nodes]

    def model(self) -> ModelView:
        """The model now."""
        found = self.client.fleet().model(MODEL)
        if found is None:
            raise MoectlError(f"model {MODEL} is gone from the bench's fleet")
        return found

    def scale(self, width: int, pace: Pace = Pace.GENTLE) -> TransitionView:
        """Scale and wait for the end; MoectlError when it was forfeited."""
        self._report("scale", f"to {width} devices, {pace}")
        operation = f"bench-{uuid.uuid4().hex[:12]}"
        self.client.scale(MODEL, str(width), operation_id=operation, dry_run=False, pace=pace)
        return waiting.wait_transition(
            self.client, operation, SCALE_DEADLINE_S, lambda transition: None
        )

    def kv_blocks(self) -> dict[str, int]:
        """KV blocks of every serving device, as the workers report them."""
        time.sleep(STATS_S)
        model = self.model()
        placed = set(map(str, model.placement.ranks)) if model.placement else set()
        return {s.device: s.kv_blocks_total for s in model.stats if s.device in placed}

    def delete_model(self) -> None:
        """Delete the model and wait until no worker of it is left."""
        self.client.delete(f"specs/Model/{MODEL}")

        def is_gone() -> bool:
            model = self.client.fleet().model(MODEL)
            return model is None or not model.workers

        waiting.wait_until("the model's end", SCALE_DEADLINE_S, is_gone)

    def end_agents(self) -> None:
        """End the agents, and with them workers, fork servers and memory managers."""
        for run in read_run_files(self.home.run_dir):
            if run.role.startswith("agent-"):
                end_process(run.process, 10.0)
                remove_run_file(self.home.run_dir, run.role)

    def kill_fork_servers(self, *, with_spares: bool) -> int:
        """Take away what is pre-warmed; returns how many processes that were."""
        homes = self._node_homes()
        runs = [run for home in homes for run in read_run_files(home.run_dir)]
        servers = [run.process for run in runs if run.role == "forkserver"]
        for server in servers if with_spares else ():
            signal_process(server, signal.SIGSTOP)  # else it forks another spare at once
        spares = [read_spare(home.fork_socket) for home in homes] if with_spares else []
        wanted = [each for each in (*spares, *servers) if each is not None and is_alive(each)]
        killed = [each for each in wanted if signal_process(each, signal.SIGKILL)]
        for process in killed:  # one that is just dying would still be taken for alive
            wait_gone(process, 5.0)
        return len(killed)


@contextmanager
def bench_fleet(shape: Shape, report: Report) -> Iterator[BenchFleet]:
    """A fleet in a home of its own; ended and removed whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="moectl-bench-"))
    with interruptible():
        fleet = BenchFleet(Home(folder), shape, report)
        try:
            yield fleet
        finally:
            fleet.down()
            shutil.rmtree(folder, ignore_errors=True)


def held_bytes(usage: Sequence[dict[str, Any]]) -> int:
    """Bytes of one node that weights, experts and KV hold or have been promised."""
    return sum(device["page_bytes"] * (device["total"] - device["free"]) for device in usage)
