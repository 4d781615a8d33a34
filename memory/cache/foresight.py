"""Which expert will its layer run again last? The trajectory memory as a cache policy.

The policy that moectl uses by default. Protects the running step's demand; never looks ahead.
Lanes are tokens that run side by side in one step. Requests that take turns share one lane: what
matters to a cache is which token comes next, whosoever it is (measured: `docs/cache-policies.md`).
"""

import numpy as np

from .policy import CacheShape, LayerStep, Worth
from .trajectory import TrajectoryMemory
from .trajectory_state import TrajectorySettings, TrajectoryShape

LANES_MAX = 64  # more requests than this share lanes; sharing blurs, it never breaks


class TrajectoryPolicy:
    """Keeps what past tokens like the running one needed next (`trajectory_reference.py`)."""

    protects_demand = True

    def __init__(
        self,
        shape: CacheShape,
        settings: TrajectorySettings | None = None,
        *,
        native: bool = True,
    ) -> None:
        self._lanes = min(shape.lanes, LANES_MAX)
        about = TrajectoryShape(shape.layers, shape.experts, shape.k, shape.slots, self._lanes)
        self.memory = TrajectoryMemory(about, settings, native=native)
        self._layer = 0
        self._lane = np.zeros(1, np.int32)

    def start_step(self, step: LayerStep) -> None:
        """Take in the step's route."""
        self._layer = step.layer
        self._lane[0] = step.lane % self._lanes
        self.memory.observe(step.lane % self._lanes, step.layer, step.experts, step.gates)

    def use(self, object_id: int) -> None:
        """Already taken in with the whole step."""

    def worth(self) -> Worth:
        """Discounted time to the next use, as past tokens had it."""
        return self.memory.keep_values(self._layer, self._lane)

    def end_request(self, lane: int) -> None:
        """Its lane starts afresh; what it taught stays. A single lane just goes on."""
        if self._lanes > 1:
            self.memory.finish(lane % self._lanes)
