"""What does the trajectory memory remember, and where do its numbers lie?

One set of plain arrays that both the numpy reference and the compiled loops work on. The size is
fixed when it is made: `history` past tokens, `lanes` token sequences at a time. Holds no logic.
"""

from dataclasses import dataclass

import numpy as np

from ...core.errors import UsageError

FIRST_SHARES = (0.8, 0.1, 0.1)  # trust in memory, popularity and recency before anything is seen


@dataclass(frozen=True, slots=True)
class TrajectorySettings:
    """Constants of the policy. They are about tokens and layers, not about one model.

    Round numbers, the same for every trace; `docs/cache-policies.md` says on what they were chosen
    and how little the results change when each is halved or doubled.
    """

    history: int = 256  # past tokens remembered; the oldest is forgotten first
    decay: float = 0.9  # how fast the agreement of earlier layers fades within a token
    sharpness: float = 2.0  # weight of the agreement along this token's path
    context: float = 6.0  # weight of the agreement of the token before
    share_rate: float = 0.01  # how fast the trust in memory, popularity and recency follows
    popularity_rate: float = 0.03  # how fast popularity follows, per token
    rank_rate: float = 0.01  # how fast the chance of use by recency follows, per layer step
    floor: float = 0.01  # no expert's popularity is taken to be below this
    patience: float = 1.0  # horizon, in multiples of the layer steps a slot lasts: slots / k
    resolve: int = 16  # tokens for which a remembered token waits for the next use of an expert

    def __post_init__(self) -> None:
        if self.history < 2 or self.resolve < 1 or self.patience <= 0:
            raise UsageError("a trajectory memory needs history >= 2, resolve >= 1, patience > 0")


@dataclass(frozen=True, slots=True)
class TrajectoryShape:
    """What the memory is about: L layers of E experts, k chosen; `slots` of them resident."""

    layers: int
    experts: int
    k: int
    slots: int
    lanes: int = 1

    @property
    def objects(self) -> int:
        """How many (layer, expert) objects."""
        return self.layers * self.experts


class TrajectoryState:
    """The arrays; H = history, O = objects. Floats are float32, as the compiled loops read them."""

    def __init__(self, shape: TrajectoryShape, settings: TrajectorySettings) -> None:
        self.shape, self.settings = shape, settings
        h, o, lanes = settings.history, shape.objects, shape.lanes
        if h < 2 * lanes:
            raise UsageError(f"history {h} is too short for {lanes} lanes")
        self.gates = np.zeros((o, h), np.float32)
        self.soon = np.zeros((h, o), np.float32)
        self.match = np.zeros((lanes, h), np.float32)
        self.whole = np.zeros((lanes, h), np.float32)
        self.context = np.zeros((lanes, h), np.float32)
        self.popularity = np.full(o, shape.k / shape.experts, np.float32)
        self.rank_use = np.full(shape.experts, shape.k / shape.experts, np.float32)
        self.shares = np.array(FIRST_SHARES, np.float32)
        self.follower = np.full(h, -1, np.int32)
        self.leader = np.full(h, -1, np.int32)
        self.position = np.zeros(h, np.int32)
        self.last_used = np.full((lanes, o), -1, np.int32)
        self.open_row = np.full(lanes, -1, np.int32)
        self.recent = np.tile(np.arange(shape.experts, dtype=np.int32), shape.layers)
        self.rank = self.recent.copy()
        self.closed = np.zeros(h, np.uint8)
        self.weight = np.zeros(h, np.float32)
        self.patience = max(1.0, settings.patience * shape.slots / shape.k)
        self.cycle = float(np.exp(-shape.layers / self.patience))
        self.cursor = 0

    def arrays(self) -> list[np.ndarray]:
        """In the order of the compiled book."""
        return [
            self.gates,
            self.soon,
            self.match,
            self.whole,
            self.context,
            self.popularity,
            self.rank_use,
            self.shares,
            self.follower,
            self.leader,
            self.position,
            self.last_used,
            self.open_row,
            self.recent,
            self.rank,
            self.closed,
            self.weight,
        ]

    @property
    def bytes(self) -> int:
        """Memory that the state holds."""
        return sum(array.nbytes for array in self.arrays())
