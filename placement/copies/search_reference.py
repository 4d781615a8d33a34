"""Where does the next copy go? One step after the other, each at the device that is fullest.

A step looks at the device with the largest load under any of the given loads: that one decides how
long a layer takes. First, which swap of two copies with any other device helps most; copies are
kept in number. If none does, which spare copy on one of the emptiest devices should become a copy
of an expert of the fullest: so replication and packing are one search. When copies may carry
unequal shares, those of the devices concerned are poured anew after every change.

What is weighed is a potential, the eighth power of the loads, summed over devices and loads: it
sees the fullest devices under all loads at once, which is what makes a plan hold under each of
them. For a single load with equal
shares the fuller of the two devices is weighed itself. Copies that are where they
were before cost nothing, others count against a budget, and a gain is judged per copy moved. Work
done away from an expert's home node has a price, not a prohibition.

A device that nothing helps is stuck until something else changes; the search ends after a number
of those, or of steps. No clock: same input, same answer.

`_search.h` is the same in C. Legend: E experts, R slots, D devices, K loads.
"""

from dataclasses import dataclass, field

LEAST_GAIN = 1e-12
TAKERS = 4  # as in _search.h


@dataclass(slots=True)
class Task:
    """What is searched. Loads are scaled so that 1 is the least possible largest load."""

    work_EK: list[list[float]]
    weight_K: list[float]
    slots: list[int]  # [R] experts, device by device; changed in place
    devices: int
    pours: bool = False  # copies may carry unequal shares
    budget: int = -1  # copies that may move; -1 is any number
    was: list[set[int]] = field(default_factory=list)  # [D] experts that are there already
    home_E: list[int] = field(default_factory=list)  # node of each expert, -1 for none
    node_D: list[int] = field(default_factory=list)
    local: float = 0.0  # price of a unit of work away from home
    near: float = 1e-4
    stuck_max: int = 8  # -1: swaps only, and the end when none helps


@dataclass(frozen=True, slots=True)
class Move:
    """Swap `slot` and `other`, or (other is -1) `slot` takes a copy of `expert`."""

    gain: float
    slot: int = -1
    other: int = -1
    expert: int = -1


class Search:
    """The state of a search, and its moves."""

    def __init__(self, task: Task, sweeps: int) -> None:
        self.t, self.per = task, len(task.slots) // task.devices
        self.K = len(task.weight_K)
        self.copies: list[list[int]] = [[] for _ in task.work_EK]
        for slot, expert in enumerate(task.slots):
            self.copies[expert].append(slot)
        self.flow = [[0.0] * self.K for _ in task.slots]
        self.load = [[0.0] * self.K for _ in range(task.devices)]
        for expert in range(len(self.copies)):
            self.share_equally(expert)
        for _ in range(sweeps if task.pours else 0):
            for expert, slots in enumerate(self.copies):
                if len(slots) > 1:
                    self.pour(expert)
        self.cost = [self.cost_of(d) for d in range(task.devices)]
        self.moved = 0
        if task.budget >= 0:
            self.moved = sum(
                expert not in task.was[slot // self.per] for slot, expert in enumerate(task.slots)
            )

    def run(self, steps: int) -> int:
        """At most `steps` looks at a fullest device; how many there were."""
        stuck: set[int] = set()
        for step in range(steps):
            g, k = self.fullest(stuck)
            if g < 0 or self.load[g][k] <= 1 + self.t.near:
                return step
            best = self.best_swap(g, k)
            if best.slot < 0 and self.t.stuck_max < 0:
                return step
            if best.slot < 0 or self.t.budget >= 0:
                best = self.best_take(g, k, best)
            if best.slot < 0:
                stuck.add(g)
                if len(stuck) > self.t.stuck_max:
                    return step
                continue
            self.carry_out(best)
            stuck.clear()
        return steps

    def cost_of(self, device: int) -> float:
        """The potential of a device over all loads."""
        total = 0.0
        for weight, load in zip(self.t.weight_K, self.load[device], strict=True):
            total += weight * _power8(load)
        return total

    def fullest(self, stuck: set[int]) -> tuple[int, int]:
        """(device, load) of the largest load of a device that is not stuck, or -1."""
        at, most = (-1, 0), 0.0
        for d in range(self.t.devices):
            for k in range(self.K if d not in stuck else 0):
                if self.load[d][k] > most:
                    at, most = (d, k), self.load[d][k]
        return at

    def share_equally(self, expert: int) -> None:
        """Every copy of an expert takes the same."""
        for r in self.copies[expert]:
            load, flow = self.load[r // self.per], self.flow[r]
            for k in range(self.K):
                load[k] -= flow[k]
                flow[k] = self.t.work_EK[expert][k] / len(self.copies[expert])
                load[k] += flow[k]

    def pour(self, expert: int) -> None:
        """Pour an expert's work over its devices; a second copy on a device takes nothing."""
        slots, per = self.copies[expert], self.per
        twin = [a > 0 and slots[a - 1] // per == r // per for a, r in enumerate(slots)]
        for k in range(self.K):
            for r in slots:
                self.load[r // per][k] -= self.flow[r][k]
            floors = sorted(
                max(0.0, self.load[r // per][k]) for r, t in zip(slots, twin, strict=True) if not t
            )
            work = self.t.work_EK[expert][k]
            surface = _surface(floors, work)
            total = 0.0
            for r, is_twin in zip(slots, twin, strict=True):
                room = surface - self.load[r // per][k]
                self.flow[r][k] = room if room > 0 and not is_twin else 0.0
                total += self.flow[r][k]
            by = work / total if total > 0 else 0.0
            for r in slots:
                self.flow[r][k] *= by
                self.load[r // per][k] += self.flow[r][k]

    def spread(self, expert: int) -> None:
        """Divide an expert's work over its copies, in the way of this search."""
        if self.t.pours and len(self.copies[expert]) > 1:
            self.pour(expert)
        else:
            self.share_equally(expert)

    def has_copy(self, expert: int, device: int) -> bool:
        """Whether a device has a copy of an expert."""
        return any(r // self.per == device for r in self.copies[expert])

    def on(self, device: int) -> range:
        """The slots of a device."""
        return range(device * self.per, (device + 1) * self.per)

    def moves_of(self, slot: int, expert: int) -> int:
        """Copies moved more when `slot` holds `expert` instead of what it holds."""
        if self.t.budget < 0:
            return 0
        was = self.t.was[slot // self.per]
        return (self.t.slots[slot] in was) - (expert in was)

    def priced(self, gain: float, moves: int) -> float:
        """The gain per moved copy; nothing beyond the budget."""
        if self.t.budget < 0 or gain <= 0:
            return gain
        if self.moved + moves > self.t.budget:
            return 0.0
        return gain / (moves if moves > 0 else 0.5)

    def away(self, slot: int, expert: int, device: int) -> float:
        """The price of this slot's work on a device that is not on the expert's home node."""
        t = self.t
        if t.local <= 0 or t.home_E[expert] < 0 or t.home_E[expert] == t.node_D[device]:
            return 0.0
        total = 0.0
        for flow in self.flow[slot]:
            total += flow
        return t.local * total / self.K

    def best_swap(self, g: int, k: int) -> Move:
        """The best swap of a copy on g with one elsewhere that makes g less full under load k."""
        here = {self.t.slots[i] for i in self.on(g)}
        if self._is_plain():
            return self._best_plain_swap(g, here)
        best = Move(LEAST_GAIN)
        for i in self.on(g):
            for h in range(self.t.devices):
                room = self.load[g][k] - self.load[h][k]
                if room <= LEAST_GAIN or self.has_copy(self.t.slots[i], h):
                    continue
                for j in self.on(h):
                    less = self.flow[i][k] - self.flow[j][k]
                    if less <= LEAST_GAIN or less >= room or self.t.slots[j] in here:
                        continue
                    gain = self._swap_gain(i, j)
                    if gain > best.gain:
                        best = Move(gain, i, j)
        return best

    def _swap_gain(self, i: int, j: int) -> float:
        g, h, slots = i // self.per, j // self.per, self.t.slots
        after = 0.0
        for q in range(self.K):
            d = self.flow[i][q] - self.flow[j][q]
            after += self.t.weight_K[q] * (
                _power8(self.load[g][q] - d) + _power8(self.load[h][q] + d)
            )
        gain = self.cost[g] + self.cost[h] - after
        if self.t.local > 0:
            before = self.away(i, slots[i], g) + self.away(j, slots[j], h)
            gain += before - self.away(i, slots[i], h) - self.away(j, slots[j], g)
        return self.priced(gain, self.moves_of(i, slots[j]) + self.moves_of(j, slots[i]))

    def _best_plain_swap(self, g: int, here: set[int]) -> Move:
        low = min(range(self.t.devices), key=lambda d: self.load[d][0])
        best = Move(LEAST_GAIN)
        for h in [low, *(d for d in range(self.t.devices) if d != low)]:
            room = self.load[g][0] - self.load[h][0]
            if room <= 2 * best.gain:  # no swap gains over half of it
                continue
            for i in self.on(g):
                for j in self.on(h):
                    less = self.flow[i][0] - self.flow[j][0]
                    gain = min(less, room - less)
                    if gain <= best.gain or self.t.slots[j] in here:
                        continue
                    if not self.has_copy(self.t.slots[i], h):
                        best = Move(gain, i, j)
        return best

    def _is_plain(self) -> bool:
        t = self.t
        return self.K == 1 and not t.pours and t.budget < 0 and t.local <= 0

    def best_take(self, g: int, k: int, best: Move) -> Move:
        """The best new copy, on one of the emptiest devices, of an expert of g."""
        order = sorted(range(self.t.devices), key=lambda d: self.load[d][k])[:TAKERS]
        for h in order:
            if h == g or self.load[h][k] >= self.load[g][k]:
                continue
            for r in self.on(h):
                if len(self.copies[self.t.slots[r]]) < 2:
                    continue
                for i in self.on(g):
                    f = self.t.slots[i]
                    if f == self.t.slots[r] or self.has_copy(f, h):
                        continue
                    gain = self.priced(self._take_gain(r, f, (g, k)), self.moves_of(r, f))
                    if gain > best.gain:
                        best = Move(gain, r, -1, f)
        return best

    def _take_gain(self, slot: int, f: int, full: tuple[int, int]) -> float:
        """What it would gain if `slot` held f; everything is as before afterwards."""
        e, most = self.t.slots[slot], self.load[full[0]][full[1]]
        slots = [*self.copies[e], *self.copies[f]]
        around = list(dict.fromkeys(r // self.per for r in slots))
        kept = [list(self.flow[r]) for r in slots], [list(self.load[d]) for d in around]
        gain = 0.0
        for d in around:
            gain += self.cost[d]
        home = self.away(slot, e, slot // self.per)
        self._take(slot, f)
        for d in around:
            gain -= self.cost_of(d)
        helps = all(self.load[d][full[1]] < most for d in around)
        gain += home - self.away(slot, f, slot // self.per)
        self._hold(slot, e)
        for r, flow in zip(slots, kept[0], strict=True):
            self.flow[r][:] = flow
        for d, load in zip(around, kept[1], strict=True):
            self.load[d][:] = load
        return gain if helps else 0.0

    def _hold(self, slot: int, expert: int) -> None:
        self.copies[self.t.slots[slot]].remove(slot)
        self.t.slots[slot] = expert
        self.copies[expert] = sorted([*self.copies[expert], slot])

    def _take(self, slot: int, f: int) -> None:
        e, load, flow = self.t.slots[slot], self.load[slot // self.per], self.flow[slot]
        for k in range(self.K):
            load[k] -= flow[k]
            flow[k] = 0.0
        self._hold(slot, f)
        self.spread(e)
        self.spread(f)

    def carry_out(self, move: Move) -> None:
        """Do it, and know what it cost."""
        slots = self.t.slots
        if move.other < 0:
            self.moved += self.moves_of(move.slot, move.expert)
            self._take(move.slot, move.expert)
        else:
            self.moved += self.moves_of(move.slot, slots[move.other])
            self.moved += self.moves_of(move.other, slots[move.slot])
            self._swap(move.slot, move.other)
        self.cost = [self.cost_of(d) for d in range(self.t.devices)]

    def _swap(self, i: int, j: int) -> None:
        g, h, a, b = i // self.per, j // self.per, self.t.slots[i], self.t.slots[j]
        self._hold(i, b)
        self._hold(j, a)
        for k in range(self.K):
            x, y = self.flow[i][k], self.flow[j][k]
            self.load[g][k] += y - x
            self.load[h][k] += x - y
            self.flow[i][k], self.flow[j][k] = y, x
        for r in [*self.on(g), *self.on(h)] if self.t.pours else []:
            if len(self.copies[self.t.slots[r]]) > 1:
                self.pour(self.t.slots[r])


def _power8(x: float) -> float:
    x *= x
    x *= x
    return x * x


def _surface(floors: list[float], work: float) -> float:
    total, surface = work, 0.0
    for under, floor in enumerate(floors):
        if under and total <= floor * under:
            break
        total += floor
        surface = total / (under + 1)
    return surface
