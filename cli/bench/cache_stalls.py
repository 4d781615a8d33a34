"""The part of `moectl bench cache` that puts loads on a simulated link and counts the waiting.

Stated speeds, nothing measured, 0.5 ms of computing a layer, 25 GB/s. "bound": an expert of 88 MB
(Mixtral at 4 bits), seven times longer to load than to compute, so that only fewer loads help.
"even": an expert of 10 MB, 0.4 ms, so that fetching ahead can hide loads. Prefetchers are judged by
stalls; the least time is max(compute, loads of MIN x bytes / bandwidth), which nothing can beat.
"""

from ...memory.cache.belady import least_seconds
from ...memory.cache.catalogue import BOUND, DEFAULT, make_policy
from ...memory.cache.predictor import Trajectory, Transitions
from ...memory.cache.simulate import ReplayRules, replay, shape_of
from ...memory.cache.timing import LinkModel, PrefetchPlan, StallSimulator
from ...memory.cache.trace import RoutingTrace
from .frame import Results

EXPERT_BYTES = {"bound": 88_000_000, "even": 10_000_000}
BYTES_PER_S = 25e9
COMPUTE_S = 0.5e-3
CASES: dict[str, tuple[str, str, PrefetchPlan]] = {
    "lru": ("lru", "", PrefetchPlan()),
    "layer-cycle": ("layer-cycle", "", PrefetchPlan()),
    "trajectory": (DEFAULT, "", PrefetchPlan()),
    "lru+transitions": ("lru", "transitions", PrefetchPlan(1, 1)),
    "trajectory+transitions": (DEFAULT, "transitions", PrefetchPlan(1, 1)),
    "trajectory+trajectory": (DEFAULT, "trajectory", PrefetchPlan(1, 1)),
    "trajectory+trajectory2": (DEFAULT, "trajectory", PrefetchPlan(2, 2)),
    "min": (BOUND, "", PrefetchPlan()),
}


def stall_rows(
    name: str, trace: RoutingTrace, decide_us: float
) -> tuple[Results, dict[str, float]]:
    """Each case on each link, at half of the objects resident; and the summary."""
    slots = trace.objects // 2
    least = replay(trace, make_policy(BOUND, trace, slots), ReplayRules(slots)).loads
    rows: Results = {}
    for link in EXPERT_BYTES:
        for case in CASES:
            rows[f"{name}/stalls-{link}/{slots}/{case}"] = _case(
                trace, (link, case), least, decide_us
            )
    bound, even = (f"{name}/stalls-{link}/{slots}" for link in EXPERT_BYTES)
    own, lru = rows[f"{bound}/{DEFAULT}"], rows[f"{bound}/lru"]
    ahead = min(
        rows[f"{even}/{case}"]["stall_s"] for case in CASES if case.startswith(f"{DEFAULT}+")
    )
    steps = trace.tokens * len(trace.layers)
    return rows, {
        "decide_share_of_wall": decide_us / 1e6 * steps / own["wall_s"],
        "speedup_over_lru": lru["wall_s"] / own["wall_s"],
        "stall_over_lru": own["stall_s"] / max(lru["stall_s"], 1e-12),
        "stall_ahead_over_not": ahead / max(rows[f"{even}/{DEFAULT}"]["stall_s"], 1e-12),
        "eta": own["eta"],
    }


def _case(
    trace: RoutingTrace, named: tuple[str, str], least: int, decide_us: float
) -> dict[str, float]:
    """One run: named = (link, case)."""
    slots = trace.objects // 2
    expert_bytes = EXPERT_BYTES[named[0]]
    policy, predictor, plan = CASES[named[1]]
    own_s = decide_us / 1e6 if policy == DEFAULT or predictor else 0.0
    link = LinkModel(COMPUTE_S, expert_bytes, BYTES_PER_S, own_s)
    ahead = {"transitions": Transitions, "trajectory": Trajectory}.get(predictor)
    simulator = StallSimulator(make_policy(policy, trace, slots), slots, link)
    found = simulator.run(trace, ahead(shape_of(trace, slots)) if ahead is not None else None, plan)
    least_s = least_seconds(found.compute_s, least, expert_bytes, BYTES_PER_S)
    return {
        "wall_s": found.wall_s,
        "stall_s": found.stall_s,
        "stall_fraction": found.stall_fraction,
        "loads": found.loads,
        "wasted_loads": found.wasted_loads,
        "least_s": least_s,
        "eta": least_s / found.wall_s,
        "tokens_per_s": trace.tokens / found.wall_s,
    }
