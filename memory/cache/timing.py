"""What do loads cost in time, and what does fetching ahead spare?

A model of one link and one computing unit: a layer step computes for `compute_s` once all of its
experts are resident; an expert takes `expert_bytes / bytes_per_s` on the link, one at a time, what
is on its way is not interrupted, and a demand goes before anything fetched ahead. The policy's and
the predictor's own time (`decide_s`) is charged to every step. Prefetchers are judged by stall
seconds here: they cannot spare a load, only the waiting. Simulated, and labelled so everywhere.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from .policy import LayerStep, Policy
from .predictor import Predictor
from .recall import steps_of
from .trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class LinkModel:
    """Speeds and sizes."""

    compute_s: float  # a layer step with its experts there
    expert_bytes: int
    bytes_per_s: float
    decide_s: float = 0.0  # policy and predictor, a layer step

    @property
    def load_s(self) -> float:
        """Seconds that the link needs for one expert."""
        return self.expert_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class PrefetchPlan:
    """How much is fetched ahead: the best `budget` experts of each of the next `ahead` layers."""

    budget: int = 0
    ahead: int = 1


@dataclass(slots=True)
class StallResult:
    """Seconds and counts of one run."""

    wall_s: float = 0.0
    stall_s: float = 0.0  # computing waited for an expert
    compute_s: float = 0.0
    demand_loads: int = 0
    prefetch_loads: int = 0
    wasted_loads: int = 0  # fetched ahead and evicted unused

    @property
    def loads(self) -> int:
        """All transfers."""
        return self.demand_loads + self.prefetch_loads

    @property
    def stall_fraction(self) -> float:
        """Share of the wall time spent waiting."""
        return self.stall_s / self.wall_s if self.wall_s else 0.0


class StallSimulator:
    """One run of a trace through cache, link and computing."""

    def __init__(self, policy: Policy, slots: int, link: LinkModel) -> None:
        self._policy, self._slots, self._link = policy, slots, link
        self._ready: dict[int, float] = {}  # resident or coming -> when it is there
        self._unused: set[int] = set()  # fetched ahead, not used yet
        self._pinned: dict[int, int] = {}  # fetched ahead -> steps until it may be evicted
        self._queue: deque[int] = deque()
        self._now = self._link_free = 0.0
        self.result = StallResult()

    def run(
        self,
        trace: RoutingTrace,
        predictor: Predictor | None = None,
        plan: PrefetchPlan | None = None,
    ) -> StallResult:
        """Replay all tokens; with a predictor and a plan, fetch ahead."""
        plan = plan or PrefetchPlan()
        for step in steps_of(trace):
            self._policy.start_step(step)
            for wanted in step.objects:
                self._policy.use(wanted)
            self._demand(step)
            if predictor is not None and plan.budget:
                predictor.observe(step)
                self._plan_ahead(step, (predictor, plan), trace)
            self._compute()
        self.result.wall_s = self._now
        return self.result

    def _demand(self, step: LayerStep) -> None:
        """Wait for the step's experts; loads start at once, before what is queued."""
        self._advance()
        self._queue.clear()  # what was fetched ahead for this layer and not begun is too late
        there = self._now
        for wanted in step.objects:
            if wanted not in self._ready:
                self._make_room(step.objects)
                self._link_free = max(self._link_free, self._now) + self._link.load_s
                self._ready[wanted] = self._link_free
                self.result.demand_loads += 1
            self._unused.discard(wanted)
            there = max(there, self._ready[wanted])
        self.result.stall_s += there - self._now
        self._now = there

    def _plan_ahead(
        self, step: LayerStep, ahead: tuple[Predictor, PrefetchPlan], trace: RoutingTrace
    ) -> None:
        predictor, plan = ahead
        experts = trace.experts_per_layer
        for target in range(step.layer + 1, min(step.layer + plan.ahead + 1, len(trace.layers))):
            best = np.argsort(-predictor.scores(step.layer, target), kind="stable")
            for expert in best[: plan.budget].tolist():
                if target * experts + expert not in self._ready:
                    self._queue.append(target * experts + expert)
        self._pinned = {key: left - 1 for key, left in self._pinned.items() if left > 0}
        self._ahead = plan.ahead

    def _compute(self) -> None:
        seconds = self._link.compute_s + self._link.decide_s
        self._now += seconds
        self.result.compute_s += self._link.compute_s

    def _advance(self) -> None:
        """Let the link work through its queue up to now, from when computing began."""
        began = self._now - self._link.compute_s - self._link.decide_s
        while self._queue and max(self._link_free, began) < self._now:
            wanted = self._queue.popleft()
            if wanted in self._ready or not self._make_room([]):
                continue
            self._link_free = max(self._link_free, began) + self._link.load_s
            self._ready[wanted] = self._link_free
            self._unused.add(wanted)
            self._pinned[wanted] = self._ahead
            self.result.prefetch_loads += 1

    def _make_room(self, kept: list[int]) -> bool:
        """Evict until there is a free slot; False when nothing may go."""
        if len(self._ready) < self._slots:
            return True
        worth = self._policy.worth()
        candidates = [o for o in self._ready if o not in kept and o not in self._pinned]
        if not candidates and kept:
            candidates = [o for o in self._ready if o not in kept]
        if not candidates:
            return False
        victim = min(candidates, key=worth.__getitem__)
        del self._ready[victim]
        self._pinned.pop(victim, None)
        if victim in self._unused:
            self._unused.discard(victim)
            self.result.wasted_loads += 1
        return True
