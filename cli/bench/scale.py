"""How long does a scale take, what does it cost those who are served, and how do others do it?

    2->4 ...            moectl, under steady streaming: 2 -> 4 -> 2 -> 4 -> 3 -> 2, in rounds
    prompt 2->4 ...     the same with `--pace prompt`
    saturated           2 -> 4 under as many readers as fill every core and more
    fork servers killed prompt 2 -> 4 right after every fork server was killed: spares stand in
    nothing pre-warmed  prompt 2 -> 4 right after fork servers and spares were killed: a rank that
                        serves forks another
    elasticmoe-like     2 -> 4 with intake paused and in-flight requests drained before the flip
    cold restart        the model ended and started again at 4, fresh interpreters, warm page cache
    horizontal replica  another replica of width 2 from fresh interpreters, beside one that serves
                        and on an idle machine
    across nodes ...    the same changes where a device more is another node's: all weights that
                        move cross a socket; and how long it takes to free a device there (4 -> 2
                        under requests with thousands of tokens to go)

All but the last on one node of four devices, where weights move from device to device. Cold restart
and replica restart agents, fork servers and workers; etcd, controller and gateway run on. Without a
folder the full bench makes a random model of more than a GiB of expert weights as held in pages;
`--quick` takes the demo model. Answers are compared with a run that never scaled. Readers of a
steady load speak one turn a conversation, so that no long prompt falls into a window or not by
chance.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...core.errors import MoectlError
from ...core.facts import read_model_facts
from ...core.plan import Pace
from ..demo.metrics import Window, failures_in, longest_gap_ms, tokens_per_second
from ..demo.traffic import Traffic
from ..gateway_client import ChatOptions
from ..train.random_model import RandomModel, invisible_tokens, write_random_model
from .frame import SOURCE_ROOT, BenchOptions, BenchResult, Results, core_count
from .scale_acts import (
    DRAIN_S,
    Reference,
    held_dtype,
    losses,
    quiet_window,
    run_acts,
    sizes_of,
)
from .scale_cycles import run_cycles
from .scale_figures import ready_s, worst
from .scale_fleet import BenchFleet, Shape, bench_fleet
from .scale_free import run_free

DEMO = SOURCE_ROOT / "clusters" / "models" / "demo"
# 8 layers x 25 experts of 6 MiB in bfloat16: 1.17 GiB of expert pages, three of 2 MiB an expert.
# 25 experts do not divide by any width that is measured.
LARGE = RandomModel(
    layers=8,
    hidden=1024,
    experts=25,
    experts_per_token=2,
    expert_hidden=1024,
    heads=8,
    kv_heads=2,
    head_dim=64,
)
SHARD_BYTES = 1 << 29
WIDTHS = (4, 2, 4, 3, 2)
START, WIDE = 2, 4
ROUNDS, ROUNDS_FULL = 2, 10
PROMPT_ROUNDS = 1
# Steady: a reader for each rank that serves at first. Saturating: a queue at every rank.
READERS, READERS_SATURATING = 2, 8
TOKENS, TOKENS_QUICK = 500, 48  # ElasticMoE's own load decodes 250-500 tokens
REFERENCE_S = 180.0
CYCLES, CYCLES_FULL = 10, 100
CYCLES_S_MIN = 120.0  # of the budget; with less left there is no cycle worth a fleet of eight
WORD, ACROSS, PROMPT = "moectl", "across nodes", "moectl, prompt"
REPLICA, REPLICA_IDLE = "horizontal replica", "horizontal replica, idle machine"
FORK_SERVERS_LOST, UNPREPARED = "moectl, fork servers killed", "moectl, nothing pre-warmed"


def run(options: BenchOptions) -> BenchResult:
    """One node with the baselines, then two nodes, then the cycles."""
    with _shape(options) as shape:
        with bench_fleet(shape, options.report) as fleet:
            measured = _Measured(options, fleet)
            measured.run()
        across = replace(shape, nodes=2, devices_per_node=2)
        with bench_fleet(across, options.report) as fleet:
            measured.run_across(fleet)
        notes = _notes(shape)
    results, summary = measured.results, measured.summary
    if options.quick or options.left_s() < CYCLES_S_MIN:
        summary |= {"cycles": 0}
    else:
        options.report("cycles", "2 -> 4 -> 8 -> 4 -> 2 on the demo model")
        count = CYCLES_FULL if options.full else CYCLES
        results["cycles"] = run_cycles(options, DEMO, count)
        summary |= {"cycles": results["cycles"]["cycles"]}
        for key in ("failed", "token_mismatches"):
            summary[key] += results["cycles"][key]
    summary["cores"] = core_count()
    return BenchResult("scale", options.seed, results, summary, notes=notes)


def _notes(shape: Shape) -> tuple[str, ...]:
    """What a reader must know."""
    held = sizes_of(shape).expert * sum(read_model_facts(shape.folder).experts_per_layer)
    return (
        f"expert weights as held in pages ({held_dtype(shape)}, arithmetic float32):"
        f" {held / 2**30:.3f} GiB",
        "one node of four devices, but for the rows that say across nodes and the cycles",
        "changes of width are gentle, the default, but for the rows that say prompt",
    )


@contextmanager
def _shape(options: BenchOptions) -> Iterator[Shape]:
    if options.files or options.quick:
        yield Shape(folder=(options.files[0] if options.files else DEMO).absolute())
        return
    with tempfile.TemporaryDirectory(prefix="moectl-bench-model-") as folder:
        made = Path(folder) / "model"

        def tell(done: int, total: int) -> None:
            options.report("write the model", f"{done >> 20} of {total >> 20} MiB")

        model = replace(LARGE, mute=invisible_tokens(DEMO))
        write_random_model(made, model, shard_bytes=SHARD_BYTES, report=tell)
        yield Shape(folder=made, hbm="1GiB", page="2MiB", kv="64MiB", is_random=True)


class _Measured:
    """The acts in order, and what they showed."""

    def __init__(self, options: BenchOptions, fleet: BenchFleet) -> None:
        self.results: Results = {}
        self.summary: dict[str, float] = {}
        self._fleet, self._options = fleet, options
        self._quiet_s = 1.5 if options.quick else 6.0
        self._tokens = TOKENS_QUICK if options.quick else TOKENS
        self._rounds = 1 if options.quick else ROUNDS_FULL if options.full else ROUNDS
        self._reference: Reference = {}

    def run(self) -> None:
        """Everything on one node."""
        fleet = self._fleet
        _stop_short_of_agents(fleet)
        self.results[REPLICA_IDLE] = {"ready_s": fleet.up(START, with_models=True)}
        fleet.until_touched()
        many = Traffic(fleet.target(), self._chats(READERS_SATURATING))
        self._options.report("reference", "the answers of a fleet that does not scale")
        first = many.play_once(REFERENCE_S)
        broken = [trace.error for trace in first if not trace.is_ok]
        if broken or not first:
            raise MoectlError(f"the run without scaling failed: {broken[:1]}")
        self._reference = {(t.conversation, t.turn): t.text for t in first}
        traffic = self._steady(fleet)
        self._moectl(traffic)
        self._prompt(traffic)
        self._saturated(many)
        self._unprepared(traffic)
        self._elasticmoe_like(traffic)
        self._replica(traffic)
        self._cold(traffic)
        self._sum_up()

    def run_across(self, fleet: BenchFleet) -> None:
        """What is measured on two nodes; after `run`, whose answers are the reference."""
        fleet.up(START, with_models=True)
        fleet.until_touched()
        traffic = self._steady(fleet)
        rows = run_acts(fleet, traffic, WIDTHS, self._quiet)
        self._note(ACROSS, "across_nodes_", rows, "bytes_ratio")
        self._judge(traffic)
        self._free(fleet)

    def _moectl(self, traffic: Traffic) -> None:
        rows = run_acts(self._fleet, traffic, WIDTHS * self._rounds, self._quiet)
        self.results |= {f"{WORD} {name}": row for name, row in rows.items()}
        self.summary = worst(list(rows.values()))
        widened = rows[f"{START}->{WIDE}"]
        for key in ("ready_s", "kv_blocks_before", "kv_blocks_after"):
            self.summary[key] = widened[key]
        self._judge(traffic)

    def _prompt(self, traffic: Traffic) -> None:
        rounds = 1 if self._options.quick else PROMPT_ROUNDS
        rows = run_acts(self._fleet, traffic, WIDTHS * rounds, self._quiet, Pace.PROMPT)
        self._note(PROMPT, "prompt_", rows, "peak_bytes_ratio")
        self._judge(traffic)

    def _note(self, word: str, prefix: str, rows: Results, key: str) -> None:
        """Keep the rows of changes made in another way, and what they sum up to."""
        self.results |= {f"{word} {name}": row for name, row in rows.items()}
        low = worst(list(rows.values()))
        for each in ("throughput_during_over_before", "gap_over_p99", key):
            self.summary[prefix + each] = low[each]
        self.summary[f"{prefix}ready_s"] = rows[f"{START}->{WIDE}"]["ready_s"]

    def _judge(self, traffic: Traffic) -> None:
        """Add what went wrong with the requests of a traffic that has ended to the summary."""
        for key, count in losses(traffic, self._reference).items():
            self.summary[key] = self.summary.get(key, 0) + count

    def _saturated(self, traffic: Traffic) -> None:
        """2 -> 4 while every core has more than it can do: what a steady load does not show."""
        fleet = self._fleet
        traffic.start()
        try:
            quiet = self._quiet()
            transition = fleet.scale(WIDE)
        finally:
            traffic.stop(DRAIN_S)
        self.results["moectl, saturated"] = {
            "ready_s": ready_s(transition),
            "readers": READERS_SATURATING,
            **self._service(traffic, transition.accepted_at, ready_s(transition), quiet),
        }
        self._judge(traffic)

    def _unprepared(self, traffic: Traffic) -> None:
        """2 -> 4 when the fork servers were just killed: with their spares, and without any."""
        for name, with_spares in ((FORK_SERVERS_LOST, False), (UNPREPARED, True)):
            fleet = self._fleet
            fleet.scale(START)
            traffic.start()
            try:
                quiet = self._quiet()
                killed = fleet.kill_fork_servers(with_spares=with_spares)
                transition = fleet.scale(WIDE, Pace.PROMPT)
            finally:
                traffic.stop(DRAIN_S)
            self.results[name] = {
                "ready_s": ready_s(transition),
                "processes_killed": killed,
                **self._service(traffic, transition.accepted_at, ready_s(transition), quiet),
            }

    def _elasticmoe_like(self, traffic: Traffic) -> None:
        """Intake pauses at the intent; the flip counts when the last old request has ended."""
        fleet = self._fleet
        fleet.scale(START)
        traffic.start()
        quiet = self._quiet()
        began = time.time()
        pausing = threading.Thread(target=lambda: traffic.stop(DRAIN_S), name="pause")
        pausing.start()
        transition = fleet.scale(WIDE, Pace.PROMPT)
        pausing.join()
        drained = time.time() - began
        seconds = max(drained, ready_s(transition))
        self.results["elasticmoe-like"] = {
            "ready_s": seconds,
            "drain_s": drained,
            **self._service(traffic, began, seconds, quiet),
        }

    def _replica(self, traffic: Traffic) -> None:
        """Another fleet comes up while this one serves the steady load."""
        self._fleet.scale(START)
        shape = replace(self._fleet.shape, devices_per_node=START)
        with bench_fleet(shape, self._options.report) as another:
            _stop_short_of_agents(another)
            traffic.start()
            try:
                quiet = self._quiet()
                began = time.time()
                seconds = another.up(START, with_models=True)
            finally:
                traffic.stop(DRAIN_S)
        self.results[REPLICA] = {
            "ready_s": seconds,
            **self._service(traffic, began, seconds, quiet),
        }

    def _cold(self, traffic: Traffic) -> None:
        """The model ends, and comes back wider from the checkpoint."""
        fleet = self._fleet  # at START, where `_replica` left it
        traffic.start()
        quiet = self._quiet()
        began, clock = time.time(), time.monotonic()
        fleet.delete_model()
        fleet.end_agents()
        fleet.up(WIDE, with_models=True)
        seconds = time.monotonic() - clock
        traffic.stop(DRAIN_S)
        self.results["cold restart"] = {
            "ready_s": seconds,
            **self._service(traffic, began, seconds, quiet),
        }

    def _service(
        self, traffic: Traffic, began: float, seconds: float, quiet: Window
    ) -> dict[str, float]:
        """What readers felt between an intent and the new width."""
        during, traces = Window(began, began + seconds), traffic.traces
        before = tokens_per_second(traces, quiet)
        now = tokens_per_second(traces, during)
        gaps = [longest_gap_ms(traces, during, replayed=r) for r in (False, True)]
        return {
            "throughput_during_over_before": now / before if before else 0.0,
            "longest_gap_ms": max(gaps),
            "failed": failures_in(traces, during),
        }

    def _sum_up(self) -> None:
        ready = {name: row["ready_s"] for name, row in self.results.items()}
        ours, prompt = (ready[f"{word} {START}->{WIDE}"] for word in (WORD, PROMPT))
        feasible = min(ready["cold restart"], ready[REPLICA])
        for name, seconds in (("", ours), ("prompt_", prompt)):
            self.summary[f"{name}ready_ratio_best_baseline"] = seconds / feasible
            ratio = seconds / ready["elasticmoe-like"]
            self.summary[f"{name}ready_ratio_elasticmoe_like"] = ratio
        self.summary["unprepared_ratio"] = ready[UNPREPARED] / prompt
        self.summary["fork_servers_lost_ratio"] = ready[FORK_SERVERS_LOST] / prompt

    def _free(self, fleet: BenchFleet) -> None:
        """4 -> 2 under requests with thousands of tokens to go: when is a device free?"""
        for pace in (Pace.GENTLE, Pace.PROMPT):
            row = run_free(fleet, WIDE, START, self._options.seed, pace)
            name = "" if pace is Pace.GENTLE else "prompt_"
            self.results[f"free a device, {pace}"] = row
            for key in ("free_device_s", "free_device_bound_s"):
                self.summary[name + key] = row[key]
            self.summary["failed"] += row["failed"]

    def _chats(self, readers: int) -> list[ChatOptions]:
        """Greedy and sampled in turn; all greedy where some tokens must never be said."""
        plain = ChatOptions(max_tokens=self._tokens)
        seeds = range(self._options.seed, self._options.seed + readers)
        seeded = [replace(plain, temperature=0.6, top_p=0.9, seed=seed) for seed in seeds]
        is_random = self._fleet.shape.is_random
        return [seeded[i] if i % 2 and not is_random else plain for i in range(readers)]

    def _steady(self, fleet: BenchFleet) -> Traffic:
        return Traffic(fleet.target(), self._chats(READERS), turns=1)

    def _quiet(self) -> Window:
        return quiet_window(self._quiet_s)


def _stop_short_of_agents(fleet: BenchFleet) -> None:
    """Bring up etcd, controller and gateway: what every replica shares."""
    fleet.up(START, with_models=False)
    fleet.end_agents()
