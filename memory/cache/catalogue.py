"""Which policies are there, by name? The one table that the CLI, the benches and tests share."""

from collections.abc import Callable

from ...core.errors import UsageError
from .belady import Belady
from .foresight import TrajectoryPolicy
from .policy import CacheShape, FrequentRecent, LeastFrequent, LeastRecent, OnDemand, Policy
from .published import ActivationMatrix, LayerCycle, PredictedDemand
from .simulate import shape_of
from .trace import RoutingTrace

DEFAULT = "trajectory"
BOUND = "min"  # reads the future: the best that any policy could do

MAKERS: dict[str, Callable[[CacheShape], Policy]] = {
    "on-demand": OnDemand,
    "lru": LeastRecent,
    "lfu": LeastFrequent,
    "lfru": FrequentRecent,
    "activation-matrix": ActivationMatrix,
    "plec": PredictedDemand,
    "layer-cycle": LayerCycle,
    "trajectory": TrajectoryPolicy,
}
NAMES = (*MAKERS, BOUND)


def make_policy(name: str, trace: RoutingTrace, slots: int) -> Policy:
    """A fresh policy for one replay of a trace; UsageError for an unknown name."""
    shape = shape_of(trace, slots)
    if name == BOUND:
        return Belady(shape, trace.object_ids())
    if name not in MAKERS:
        raise UsageError(f"policy {name}: not known", next_step=f"use one of: {', '.join(NAMES)}")
    return MAKERS[name](shape)
