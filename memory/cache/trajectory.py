"""Which resident expert is needed last, judged by the routes of past tokens like this one?

The trajectory memory behind one class that runs the compiled loops where they are built and the
numpy reference elsewhere. Learns online from the routes it is shown and from nothing else: no
training, no model, no token ids. Must never see a route before the gate has chosen it.
"""

import numpy as np
import numpy.typing as npt

from . import trajectory_reference as reference
from .native import extension
from .trace import Floats, Ints
from .trajectory_state import TrajectorySettings, TrajectoryShape, TrajectoryState

CURSOR_AT = 5  # place of the cursor in the compiled book


class TrajectoryMemory:
    """Past tokens' routes, and what they say about the tokens in flight."""

    def __init__(
        self,
        shape: TrajectoryShape,
        settings: TrajectorySettings | None = None,
        *,
        native: bool = True,
    ) -> None:
        self.state = TrajectoryState(shape, settings or TrajectorySettings())
        self.values = np.zeros(shape.objects, np.float32)
        self._layer_of_lane = [-1] * shape.lanes
        self._loops = _Native(self.state, self.values) if native and extension is not None else None

    @property
    def native(self) -> bool:
        """Whether the compiled loops run."""
        return self._loops is not None

    def observe(self, lane: int, layer: int, experts: Ints, gates: Floats) -> None:
        """The token in a lane uses these experts [k] of a layer, with gates [k] that add up to 1.

        A layer that is not later than the lane's last one begins the lane's next token.
        """
        if layer <= self._layer_of_lane[lane] or self.state.open_row[lane] < 0:
            self._begin(lane)
        self._layer_of_lane[lane] = layer
        if self._loops is not None:
            self._loops.observe(lane, layer, experts, gates)
        else:
            reference.observe(self.state, lane, layer, (experts, gates))

    def _begin(self, lane: int) -> None:
        if self._loops is not None:
            self._loops.begin(lane)
        else:
            reference.begin(self.state, lane)

    def finish(self, lane: int) -> None:
        """The lane's request is over; what it taught stays."""
        reference.finish(self.state, lane)
        self._layer_of_lane[lane] = -1

    def forget(self, row: int) -> None:
        """A remembered or open token of another row than the running one is dropped; its row is
        the next to be used."""
        self.state.closed[row] = 0
        self.state.cursor = row
        if self._loops is not None:
            self._loops.set_cursor(row)

    def keep_values(self, layer: int, lanes: Ints) -> Floats:
        """Worth of keeping every object [objects] after this layer of these lanes' tokens.

        Between 0 and about 1; higher means needed sooner. The array is reused by the next call.
        """
        if self._loops is not None:
            self._loops.keep_values(layer, lanes)
        else:
            reference.keep_values(self.state, layer, lanes, self.values)
        return self.values

    def predict(self, lane: int, layer: int, target: int) -> Floats:
        """How likely each expert [experts] of layer `target` is used next by the lane's token.

        `layer` is the last one observed; a target not later than it belongs to the next token.
        """
        state, shape = self.state, self.state.shape
        attend = self._loops.attend if self._loops is not None else None
        total = attend(lane) if attend is not None else reference.attend(state, lane)
        span = slice(target * shape.experts, (target + 1) * shape.experts)
        memory, popularity, recency = (state.shares / state.shares.sum()).tolist()
        scores = popularity * state.popularity[span] + recency * state.rank_use[state.rank[span]]
        if total > 0.0:
            rows: npt.NDArray[np.intp] = np.flatnonzero(state.weight)
            by = state.weight[rows] / np.float32(total)
            if target <= layer:
                followed = state.follower[rows] >= 0
                rows, by = state.follower[rows[followed]].astype(np.intp), by[followed]
            scores = scores + memory * ((state.gates[span][:, rows] > 0) @ by)
        return np.asarray(scores, np.float32)


class _Native:
    """The compiled loops over a state: keeps the addresses, so that a call costs a microsecond."""

    def __init__(self, state: TrajectoryState, values: Floats) -> None:
        assert extension is not None
        shape, settings = state.shape, state.settings
        self._state = state  # keeps the arrays alive
        numbers = [shape.layers, shape.experts, settings.history, shape.lanes, settings.resolve]
        addresses = [array.ctypes.data for array in state.arrays()]
        self._book = np.array([*numbers, state.cursor, *addresses], np.int64)
        self._settings = np.array(
            [
                settings.decay,
                settings.sharpness,
                settings.context,
                settings.share_rate,
                settings.popularity_rate,
                settings.rank_rate,
                settings.floor,
                state.cycle,
                state.patience,
            ]
        )
        self._head = (self._book.ctypes.data, self._settings.ctypes.data)
        self._values = values
        self._extension = extension

    def set_cursor(self, row: int) -> None:
        self._book[CURSOR_AT] = row

    def begin(self, lane: int) -> None:
        self._extension.begin(*self._head, lane)

    def observe(self, lane: int, layer: int, experts: Ints, gates: Floats) -> None:
        self._extension.observe(
            *self._head,
            lane,
            layer,
            np.ascontiguousarray(experts, np.int32),
            np.ascontiguousarray(gates, np.float32),
        )

    def keep_values(self, layer: int, lanes: Ints) -> None:
        self._extension.keep_values(
            *self._head, layer, np.ascontiguousarray(lanes, np.int32), self._values
        )

    def attend(self, lane: int) -> float:
        return float(self._extension.attend(*self._head, lane))
