"""Does anything go wrong when a fleet scales up and down again and again under load?

One cycle is 2 -> 4 -> 8 -> 4 -> 2 over two nodes of four devices. Every answer is compared with the
run before the first scale; a request that failed, or whose text differs, is counted.
"""

import time
from pathlib import Path

from ..demo.traffic import Traffic
from ..gateway_client import ChatOptions
from .frame import BenchOptions
from .scale_acts import DRAIN_S, losses
from .scale_figures import ready_s
from .scale_fleet import Shape, bench_fleet

CYCLE = (4, 8, 4, 2)
REFERENCE_S = 120.0
RESERVE_S = 60.0  # of the budget, for the drain and the end
TALKERS, TOKENS = 4, 64


def run_cycles(options: BenchOptions, model: Path, count: int) -> dict[str, float]:
    """As many cycles as asked for and as the budget allows; the row says how many."""
    shape = Shape(folder=model, nodes=2, devices_per_node=4)
    ready: list[float] = []
    done = 0
    with bench_fleet(shape, options.report) as fleet:
        fleet.up(2, with_models=True)
        traffic = Traffic(fleet.target(), [ChatOptions(max_tokens=TOKENS)] * TALKERS)
        reference = {(t.conversation, t.turn): t.text for t in traffic.play_once(REFERENCE_S)}
        traffic.start()
        took = 0.0
        try:
            while done < count and options.left_s() > RESERVE_S + took:
                began = time.monotonic()
                ready += [ready_s(fleet.scale(width)) for width in CYCLE]
                took = time.monotonic() - began
                done += 1
                options.report("cycles", f"{done} of {count}")
        finally:
            traffic.stop(DRAIN_S)
        return {
            "cycles": done,
            "scales": len(ready),
            "requests": traffic.sent,
            **losses(traffic, reference),
            "ready_s_max": max(ready, default=0.0),
        }
