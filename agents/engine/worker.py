"""What is a worker? One process, one device, one rank: an engine, its sockets and its transitions.

This file only puts the parts together and takes them apart again:

    main thread    StepLoop        the engine; never waits for anything but its group and its inbox
    "data"         DataServer      gateways: requests in, tokens out
    "control"      ControlServer   the agent: status, transitions
    "lifecycle"    Lifecycle       prepares, commits, retires, forfeits
    "depart"       Departure       hands requests over when this rank leaves
    "land"         Landing         takes over requests of ranks that leave
    "keeper"       Keeper          hands this device's memory to a new HMM when the old one died
    "prepare",     throw-away      copying and mapping at low priority, groups that meet
    "meet"

It is forked from the fork server (agents/launch), which gives it a template. It outlives its agent.
"""

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...core.priority import SessionPriority, be_idle, be_prompt, can_leave_idle
from ...core.records import TransitionRecord, WorkerStats, from_json, to_plain
from ...core.transitions import WorkerState
from ...memory.hmm.keeper import Keeper
from ..launch.orders import WorkerLaunch
from .context import WorkerContext
from .control import ControlServer
from .gently import beside
from .inbox import Inbox
from .lifecycle import Lifecycle
from .model import build_template
from .move_wire import read_secret
from .request import StepResult
from .serve import DataServer
from .steps import Callbacks, LoopState, StepLoop

__all__ = ["Worker", "build_template", "run"]

#: Threads of a worker switch at most this late. Chosen: a hundredth of Python's default. The
#: engine's thread gives the interpreter up dozens of times a step (every wait for a peer does), and
#: beside a thread that prepares it pays this much each time to get it back.
SWITCH_S = 0.00005


class Worker:
    """The parts of one worker."""

    def __init__(self, launch: WorkerLaunch, template: Any, session: SessionPriority) -> None:
        self.launch = launch
        self.context = replace(WorkerContext.build(launch, template), session=session)
        self.inbox = Inbox(self.context.limits.max_queued)
        secret = read_secret(launch.secret_file)
        greeting = {"model": launch.model, "context_tokens": self.context.limits.max_context}
        self.data = DataServer(launch.data_host, secret, greeting, self.inbox)
        callbacks = Callbacks(self._publish, self._live, self._broken)
        self.loop = StepLoop(self.inbox, callbacks)
        self.control = ControlServer(
            Path(launch.control_socket), self.loop, self.status, self.stats
        )
        self.lifecycle = Lifecycle(self.context, self.loop, self.data, self.control.tell)

    def serve(self) -> None:
        """Serve until stopped."""
        self.lifecycle.start()
        self.data.start(self.loop)
        self.control.start(self.lifecycle)
        if self.launch.transition:  # what the agent asks for, too: whoever is first begins it
            self.lifecycle.prepare(from_json(TransitionRecord, self.launch.transition))
        keeper = Keeper(self.launch.hmm_socket, self.launch.device, self.launch.model)
        be_prompt()  # this is the engine's thread; all others have started
        try:
            self.loop.run()
        finally:
            keeper.close()
            epoch = self.loop.epoch
            if epoch is not None:
                epoch.exchange.abort("the rank ends")
            self.data.close()
            self.control.close()

    def status(self) -> dict[str, Any]:
        """The reply to "status"."""
        epoch = self.loop.epoch
        import os

        return {
            "state": str(self._state()),
            "epoch": self.lifecycle.epoch,
            "rank": epoch.rank if epoch is not None else -1,
            "instance": self.launch.instance,
            "data_address": self.data.address,
            "pid": os.getpid(),
            "model": self.launch.model,
            "device": str(self.context.device),
            "prepared_operation": self.lifecycle.prepared_operation,
        }

    def stats(self) -> dict[str, Any]:
        """The reply to "stats": a WorkerStats as plain data."""
        counters, engine, epoch = self.loop.counters, self.loop.engine, self.loop.epoch
        held = engine.stats() if engine is not None else None
        steps = sorted(counters.step_ms.copy())
        counts = counters.expert_tokens_LE
        return to_plain(
            WorkerStats(
                model=self.launch.model,
                rank=epoch.rank if epoch is not None else -1,
                device=str(self.context.device),
                epoch=self.lifecycle.epoch,
                running=held.running if held else 0,
                waiting=held.waiting if held else 0,
                tokens_out=counters.tokens_out,
                tokens_in=counters.tokens_in,
                steps=counters.steps,
                step_ms_p50=_percentile(steps, 0.50),
                step_ms_p99=_percentile(steps, 0.99),
                kv_blocks_used=held.kv_blocks_used if held else 0,
                kv_blocks_total=held.kv_blocks_total if held else 0,
                expert_tokens=tuple(map(tuple, counts.tolist())) if counts is not None else (),
                rows=held.rows if held else 0,
            )
        )

    def _state(self) -> WorkerState:
        match self.loop.state:
            case LoopState.WAITING:
                is_ready = bool(self.lifecycle.prepared_operation)
                return WorkerState.PREPARED if is_ready else WorkerState.STARTING
            case LoopState.PARKED:
                return WorkerState.PARKED
            case LoopState.LEFT:
                return WorkerState.LEAVING
            case LoopState.SERVING:
                return WorkerState.LEAVING if self.loop.is_leaving else WorkerState.SERVING

    def _publish(self, result: StepResult) -> None:
        self.data.publish(result)

    def _live(self, epoch: Any, figures: dict[str, float]) -> None:
        self.lifecycle.on_live(epoch, figures)

    def _broken(self, epoch: int, reason: str) -> None:
        self.lifecycle.on_broken(epoch, reason)


def run(launch: WorkerLaunch, template: Any) -> int:
    """The whole life of a worker process; returns its exit code."""
    session = SessionPriority()
    sys.setswitchinterval(SWITCH_S)
    can_leave_idle()  # asked while no engine waits for the interpreter, and known from then on
    # Until this rank is prepared others are serving: see `Preparation` for idle priority.
    give_way = be_idle if launch.is_gentle and session.lower() else None
    worker = beside(lambda: Worker(launch, template, session), "begin", give_way).result()
    torch.set_num_threads(worker.context.threads)  # no pool of threads is older than the fork
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.loop.stop())
    print(
        f"{time.time():.3f} worker {launch.model} on {worker.context.device} at "
        f"{worker.data.address}",
        file=sys.stderr,
        flush=True,
    )
    worker.serve()
    return 0


def _percentile(ascending: list[float], share: float) -> float:
    if not ascending:
        return 0.0
    return ascending[min(int(len(ascending) * share), len(ascending) - 1)]
