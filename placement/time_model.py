"""How long will a transition prepare, and how long will token streams pause at its commit?

A first model with few terms, all constants named and sourced, meant to be compared with what
happened (the transition record keeps both) and to be fitted later. It never decides anything: the
planner's choice depends on bytes alone, so a wrong constant cannot make a plan worse.

    prepare = start a process and its group (only when ranks join, else the group alone)
            + the slowest device's share of: copies in the node, copies between nodes, loads
    pause   = one step at the new epoch, its first exchange included; in a heal nobody serves
              while it prepares, so all of that is added

Copies of different devices run at the same time, those of one target follow each other. A gentle
change takes what the cores have left: that stretches everything that takes processor time.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.plan import DeviceId, Step, StepKind, TransitionKind


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second and seconds. Measured on a 2-core x86 machine, 2026, host back end."""

    node_copy: float = 5.0e9  # memcpy from a mapped peer, beside ranks that serve, into pages that
    # were touched ahead, as agents do by default (0.9e9 into others: the first touch is the cost)
    cross_copy: float = 0.8e9  # gloo over TCP loopback: 0.6 to 1.0 measured
    load: float = 0.4e9  # checkpoint in the page cache, bf16 to fp32 in pieces, into fresh pages
    fork_and_group_s: float = 0.3  # fork server to a rank in its group: 0.06 idle, 0.4 busy
    group_s: float = 0.1  # a new group among running ranks, and the answers of all nodes
    flip_ms: float = 8.0  # the flip is an assignment; a first step of 7 to 16 ms was measured
    gentle_stretch: float = 5.0  # the same copies in a fifth of a core: what two busy ranks leave
    gentle_start: float = 2.0  # times that a gentle start takes a prompt one's time


MEASURED_RATES = Rates()


def prepare_s(
    steps: Sequence[Step], joining: frozenset[DeviceId], rates: Rates, *, is_gentle: bool = False
) -> float:
    """Seconds from accepting a transition to every rank being ready to commit."""
    seconds: dict[DeviceId, float] = defaultdict(float)
    for step in steps:
        if step.kind in (StepKind.COPY, StepKind.LOAD):
            seconds[step.target] += step.bytes / _rate(step, rates)
    start_s = rates.fork_and_group_s if joining else rates.group_s
    start, stretch = (rates.gentle_start, rates.gentle_stretch) if is_gentle else (1.0, 1.0)
    return start * start_s + stretch * max(seconds.values(), default=0.0)


def _rate(step: Step, rates: Rates) -> float:
    if step.kind is StepKind.LOAD:
        return rates.load
    return rates.cross_copy if step.crosses_node else rates.node_copy


def pause_ms(kind: TransitionKind, prepare_s: float, rates: Rates) -> float:
    """Milliseconds that a stream waits longer than usual at the commit; 0 when nothing serves."""
    if kind in (TransitionKind.CREATE, TransitionKind.DELETE):
        return 0.0
    return rates.flip_ms + (1000 * prepare_s if kind is TransitionKind.HEAL else 0.0)
