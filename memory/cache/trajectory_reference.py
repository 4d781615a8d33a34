"""How does the trajectory memory learn and judge? In numpy, as the reference of `_trajectory.c`.

Every past token is remembered as the experts it used in every layer. A token in flight is compared
with all of them: along its own path so far (`match`, earlier layers fading) and by how well the
token before agreed (`context`). The best matches say what comes next: an object of a later layer
is worth what it was worth to them (`soon`: discounted time to its next use); an object of a layer
already passed is worth what it was to the tokens that followed them. Beside the memory stand plain
popularity and recency (how likely is use after so many others of the layer); how far each of the
three is trusted follows how well it named the experts used. Only the past is ever read.
"""

import numpy as np

from .trace import Floats, Ints
from .trajectory_state import TrajectoryState

LITTLE = 1e-3  # no source is ever taken to have said nothing
NEGLIGIBLE = -7.0  # a past token e^7 times less fitting than the best is left out


def tail(state: TrajectoryState, popularity: Floats) -> Floats:
    """Discounted next use of objects of which only the popularity is known."""
    p = np.maximum(popularity, state.settings.floor)
    return np.asarray(p / (1.0 - (1.0 - p) * state.cycle), np.float32)


def end_token(state: TrajectoryState, lane: int) -> None:
    """Close the lane's token: its agreement becomes the context of what follows."""
    old = int(state.open_row[lane])
    state.context[lane] = 0.0
    if old >= 0:
        state.closed[old] = 1
        rows = np.flatnonzero((state.closed == 1) & (state.follower >= 0))
        state.context[lane, state.follower[rows]] = state.settings.context * state.whole[lane, rows]
        row = old
        for _ in range(state.settings.resolve):
            if row < 0:
                break
            waiting = state.last_used[lane] < state.position[row]
            state.soon[row, waiting] *= np.float32(state.cycle)
            row = int(state.leader[row])
    state.match[lane] = 0.0
    state.whole[lane] = 0.0


def begin(state: TrajectoryState, lane: int) -> None:
    """Close the lane's token, if one is open, and open the next in a free row."""
    old = int(state.open_row[lane])
    end_token(state, lane)
    row = _free_row(state)
    _unlink(state, row)
    state.leader[row] = old
    if old >= 0:
        state.follower[old] = row
        state.position[row] = state.position[old] + 1
    else:
        state.position[row] = 0
        state.last_used[lane] = -1
    state.open_row[lane] = row
    state.soon[row] = tail(state, state.popularity)


def finish(state: TrajectoryState, lane: int) -> None:
    """The lane's request is over: the next token in the lane has no past."""
    end_token(state, lane)
    state.context[lane] = 0.0
    state.open_row[lane] = -1


def _free_row(state: TrajectoryState) -> int:
    while True:
        row = state.cursor
        state.cursor = (state.cursor + 1) % state.settings.history
        if not (state.open_row == row).any():
            return row


def _unlink(state: TrajectoryState, row: int) -> None:
    state.gates[:, row] = 0.0
    state.match[:, row] = state.whole[:, row] = state.context[:, row] = 0.0
    if state.leader[row] >= 0:
        state.follower[state.leader[row]] = -1
    if state.follower[row] >= 0:
        state.leader[state.follower[row]] = -1
    state.follower[row] = -1
    state.closed[row] = 0


def observe(state: TrajectoryState, lane: int, layer: int, route: tuple[Ints, Floats]) -> None:
    """The lane's token uses these experts in this layer; route = (ids [k], gates [k])."""
    experts, gates = route[0], np.sqrt(route[1])
    shape, settings = state.shape, state.settings
    objects = layer * shape.experts + experts
    _judge(state, lane, objects)
    _renew(state, layer, experts)
    agreement = gates @ state.gates[objects]
    state.match[lane] = state.match[lane] * np.float32(settings.decay) + agreement
    state.whole[lane] += agreement / np.float32(shape.layers)
    row = int(state.open_row[lane])
    popularity = state.popularity[layer * shape.experts : (layer + 1) * shape.experts]
    popularity *= np.float32(1.0 - settings.popularity_rate)
    popularity[experts] += np.float32(settings.popularity_rate)
    for at, gate in zip(objects.tolist(), gates.tolist(), strict=True):
        state.gates[at, row] = gate
        _resolve(state, lane, row, at)


def _judge(state: TrajectoryState, lane: int, objects: Ints) -> None:
    """Trust follows the share of each source in what was said of the experts now used."""
    total = attend(state, lane)
    if total <= 0.0:
        return
    trust = state.shares.copy()
    for at in objects.tolist():
        named = state.weight[state.gates[at] > 0].sum() / total
        known = (named, state.popularity[at], state.rank_use[state.rank[at]])
        said = trust * (np.array(known, np.float32) + np.float32(LITTLE))
        state.shares += (said / said.sum() - trust) * (state.settings.share_rate / len(objects))


def _renew(state: TrajectoryState, layer: int, experts: Ints) -> None:
    """The experts move to the front of their layer's list; the chances by rank follow."""
    first = layer * state.shape.experts
    span = slice(first, first + state.shape.experts)
    rate = np.float32(state.settings.rank_rate)
    state.rank_use *= np.float32(1.0) - rate
    state.rank_use[state.rank[span][experts]] += rate
    chosen = set(experts.tolist())
    rest = [expert for expert in state.recent[span].tolist() if expert not in chosen]
    state.recent[span] = [*experts.tolist(), *rest]
    state.rank[first + state.recent[span]] = np.arange(state.shape.experts, dtype=np.int32)


def _resolve(state: TrajectoryState, lane: int, row: int, at: int) -> None:
    """Tell the tokens that waited for this object how long it took."""
    worth, back = 1.0, row
    last = int(state.last_used[lane, at])
    for _ in range(state.settings.resolve + 1):
        if back < 0 or state.position[back] <= last:
            break
        state.soon[back, at] = worth
        worth *= state.cycle
        back = int(state.leader[back])
    state.last_used[lane, at] = state.position[row]


def attend(state: TrajectoryState, lane: int) -> float:
    """Fill `state.weight` with what each past token counts for the lane; returns the sum."""
    score = state.settings.sharpness * state.match[lane] + state.context[lane]
    score[state.closed == 0] = -np.inf
    top = score.max()
    if top == -np.inf:
        state.weight[:] = 0.0
        return 0.0
    below = score - top
    state.weight[:] = np.where(below < NEGLIGIBLE, 0.0, np.exp(below))
    return float(state.weight.sum())


def keep_values(state: TrajectoryState, layer: int, lanes: Ints, out: Floats) -> None:
    """Worth of keeping each object [O], seen from a layer step of these lanes; higher is better."""
    shape = state.shape
    cut = (layer + 1) * shape.experts
    out[:] = 0.0
    trusted = 0.0
    for lane in lanes.tolist():
        total = attend(state, lane)
        if total <= 0.0:
            continue
        rows = np.flatnonzero(state.weight)
        trusted += 1.0 / len(lanes)
        by = state.weight[rows] * (state.shares[0] / (total * len(lanes)))
        out[cut:] += by @ state.soon[rows, cut:]
        led = state.follower[rows] >= 0
        out[:cut] += by[led] @ state.soon[state.follower[rows[led]], :cut]
    memory, popularity, recency = state.shares.tolist()
    rest = (1.0 - trusted * memory) / (1.0 - memory)  # without a memory yet: the others alone
    out += rest * popularity * tail(state, state.popularity)
    out += rest * recency * tail(state, state.rank_use)[state.rank]
    step = np.arange(shape.layers)
    away = np.where(step > layer, step - layer, step - layer + shape.layers)
    out *= np.repeat(np.exp(-away / state.patience), shape.experts).astype(np.float32)
