"""How many loads does a policy cause on a trace?

The stream is the trace's tokens in order, each through all its layers, one token a step. Two
protocols, both exact about when a demand set is admitted:
  "one"  the experts of a step are asked for one after the other, best gate first; each is admitted
         before the next is asked for, and anything but the one being admitted may be evicted,
         unless the policy itself protects the step's demand. The golden numbers are made so.
  "set"  the step's whole demand is asked for at once, and none of it is evicted meanwhile, as an
         engine must do. Needs at least k slots in a pool.
Pools: "shared" (all layers draw on the same slots) or "per-layer" (slots / layers each).
Every use is counted, the first ones too. The time of a policy is measured around its own calls and
the choice of the victim, as CPU time of the thread: what else runs on the core is not its cost.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...core.errors import RefusedError
from .policy import CacheShape, LayerStep, OnDemand, Policy
from .trace import RoutingTrace

PROTOCOLS = ("one", "set")
POOLS = ("shared", "per-layer")


@dataclass(frozen=True, slots=True)
class ReplayRules:
    """How a replay is run."""

    slots: int
    pool: str = "shared"
    protocol: str = "one"
    timed: bool = False  # measure the policy's own time

    def check(self, trace: RoutingTrace) -> None:
        """Raises RefusedError where the rules and the trace do not fit together."""
        layers = len(trace.layers)
        if self.pool not in POOLS or self.protocol not in PROTOCOLS:
            raise RefusedError(f"pool {self.pool!r}, protocol {self.protocol!r}: not known")
        if self.pool == "per-layer" and self.slots % layers:
            raise RefusedError(
                f"{self.slots} slots do not divide into {layers} layers",
                next_step=f"use a multiple of {layers}, or --pool shared",
            )
        a_pool = self.slots // layers if self.pool == "per-layer" else self.slots
        least = trace.k if self.protocol == "set" else 1
        if a_pool < least:
            raise RefusedError(f"a pool of {a_pool} slots holds no demand of {least} experts")


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay counted."""

    uses: int
    hits: int
    misses: npt.NDArray[np.uint8]  # [layer steps] loads of each step
    decide_us: float = 0.0  # policy's time for a layer step, mean
    decide_p99_us: float = 0.0

    @property
    def loads(self) -> int:
        """Experts fetched."""
        return self.uses - self.hits

    @property
    def hit_rate(self) -> float:
        """Hits for each use."""
        return self.hits / self.uses if self.uses else 0.0


@dataclass(slots=True)
class _Residency:
    """Which objects hold slots, pool by pool."""

    resident: npt.NDArray[np.bool_]
    absent: npt.NDArray[np.float32]  # 0 where resident, infinite elsewhere
    limit: int  # slots of one pool
    spans: list[slice]  # the objects of each pool
    pool_of: list[int]  # object -> pool
    used: list[int] = field(default_factory=list)

    def evict_for(self, wanted: int, worth: npt.NDArray[np.floating], kept: list[int]) -> None:
        """Make a place in the pool of an object; `kept` is not evicted."""
        span = self.spans[self.pool_of[wanted]]
        masked = worth[span] + self.absent[span]
        for other in kept:
            if span.start <= other < span.stop:
                masked[other - span.start] = np.inf
        at = int(masked.argmin())
        if masked[at] == np.inf:  # a pool smaller than the demand: something of it must go
            at = int((worth[span] + self.absent[span]).argmin())
        victim = span.start + at
        self.resident[victim] = False
        self.absent[victim] = np.inf
        self.used[self.pool_of[wanted]] -= 1

    def admit(self, wanted: int) -> None:
        """Give an object a slot; a place must be free."""
        self.resident[wanted] = True
        self.absent[wanted] = 0.0
        self.used[self.pool_of[wanted]] += 1

    def full_for(self, wanted: int) -> bool:
        """Whether the object's pool has no free slot."""
        return self.used[self.pool_of[wanted]] >= self.limit


def shape_of(trace: RoutingTrace, slots: int) -> CacheShape:
    """The cache that a trace's objects compete for."""
    return CacheShape(len(trace.layers), trace.experts_per_layer, trace.k, slots)


def replay(trace: RoutingTrace, policy: Policy, rules: ReplayRules) -> ReplayResult:
    """Run a trace through a cache under a policy."""
    rules.check(trace)
    run = _Replay(trace, policy, rules)
    return run.result()


class _Replay:
    """One replay; separate from `replay` only to keep its state together."""

    def __init__(self, trace: RoutingTrace, policy: Policy, rules: ReplayRules) -> None:
        self._trace, self._policy, self._rules = trace, policy, rules
        self._residency = _residency(trace, rules)
        self._no_cache = isinstance(policy, OnDemand)
        steps = trace.tokens * len(trace.layers)
        self._misses = np.zeros(steps, np.uint8)
        self._spent_ns = np.zeros(steps if rules.timed else 0, np.int64)

    def result(self) -> ReplayResult:
        trace, policy = self._trace, self._policy
        gates, objects = trace.gates(), trace.object_ids().tolist()
        requests = trace.requests.tolist()
        last_token = {request: token for token, request in enumerate(requests)}
        layers, at = len(trace.layers), 0
        for token in range(trace.tokens):
            for layer in range(layers):
                step = LayerStep(
                    requests[token],
                    layer,
                    trace.experts[token, layer],
                    gates[token, layer],
                    objects[token][layer],
                )
                self._step(step, at)
                at += 1
            if last_token[requests[token]] == token:
                policy.end_request(requests[token])
        uses = trace.experts.size
        spent = self._spent_ns / 1e3
        return ReplayResult(
            uses,
            uses - int(self._misses.sum()),
            self._misses,
            float(spent.mean()) if len(spent) else 0.0,
            float(np.percentile(spent, 99)) if len(spent) else 0.0,
        )

    def _step(self, step: LayerStep, at: int) -> None:
        if self._no_cache:
            self._misses[at] = len(step.objects)
            return
        began = time.thread_time_ns() if self._rules.timed else 0
        self._policy.start_step(step)
        protect = self._rules.protocol == "set" or self._policy.protects_demand
        if self._rules.protocol == "set":
            for wanted in step.objects:
                self._policy.use(wanted)
        worth = None
        residency = self._residency
        for wanted in step.objects:
            if self._rules.protocol == "one":
                self._policy.use(wanted)
            if residency.resident[wanted]:
                continue
            self._misses[at] += 1
            if residency.full_for(wanted):
                if worth is None or not protect:
                    worth = self._policy.worth()
                residency.evict_for(wanted, worth, step.objects if protect else [])
            residency.admit(wanted)
        if self._rules.timed:
            self._spent_ns[at] = time.thread_time_ns() - began


def _residency(trace: RoutingTrace, rules: ReplayRules) -> _Residency:
    layers, experts, objects = len(trace.layers), trace.experts_per_layer, trace.objects
    if rules.pool == "shared":
        spans, pool_of, limit = [slice(0, objects)], [0] * objects, rules.slots
    else:
        spans = [slice(i * experts, (i + 1) * experts) for i in range(layers)]
        pool_of = [i // experts for i in range(objects)]
        limit = rules.slots // layers
    absent = np.full(objects, np.inf, np.float32)
    return _Residency(np.zeros(objects, bool), absent, limit, spans, pool_of, [0] * len(spans))
