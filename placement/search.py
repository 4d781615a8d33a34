"""Of which replicas should a fleet be built? Exact composition, with a bound beside the answer.

A pool is devices of one kind in nodes. A replica of at most a node stands inside one node, a larger
one on whole nodes. Best fills of a node come from dynamic programming over its devices, best fills
of a pool from dynamic programming over its nodes, for three curves: requests a second served by
mixed replicas, prefilled, and decoded. A pool then splits its nodes between mixed replicas and a
prefill/decode pair; the split is tried whole. Pools do not share replicas.

The answer is exact for this space of fleets whatever its size; `bound` is the density bound (no
fleet yields more than every device at the best candidate's rate), printed as a certificate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .candidates import Candidate, Question, Rejected, enumerate_layouts, weigh_all
from .constants import Constants
from .hardware import Hardware
from .weigh import Array


@dataclass(frozen=True, slots=True)
class Pool:
    """Devices of one kind: `nodes` whole nodes of `node_devices`."""

    hardware: Hardware
    nodes: int
    node_devices: int

    @property
    def devices(self) -> int:
        """All devices of the pool."""
        return self.nodes * self.node_devices


@dataclass(frozen=True, slots=True)
class Block:
    """So many replicas of one candidate in a pool."""

    pool: int
    candidate: Candidate
    replicas: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The answer: blocks, requests a second, the bound on it, and why layouts were rejected."""

    blocks: tuple[Block, ...]
    rate: float
    bound: float
    devices_used: int
    candidates: tuple[tuple[Candidate, ...], ...]  # of each pool
    rejected: tuple[tuple[Rejected, ...], ...]

    @property
    def gap(self) -> float:
        """How far the answer may be from the density bound, as a share of the bound."""
        return 1 - self.rate / self.bound if self.bound else 0.0


@dataclass(slots=True)
class _Curve:
    """best[k]: the most requests a second that k nodes yield; `take[k]`: the last move made."""

    best: Array
    take: list[tuple[int, tuple[Candidate, ...]]]  # (nodes it used, replicas on them)


def best_fleet(question: Question, pools: Sequence[Pool], constants: Constants) -> Fleet:
    """The fleet of the highest rate, or (when the workload names one) of the fewest nodes for it.

    `rate` 0 and no blocks: nothing fits; `rejected` says why.
    """
    every: list[tuple[Candidate, ...]] = [()] * len(pools)
    rejected: list[tuple[Rejected, ...]] = [()] * len(pools)
    blocks: list[Block] = []
    total, bound, used = 0.0, 0.0, 0
    wanted = question.workload.rate
    for index in _cheapest_first(pools):
        pool = pools[index]
        ranks = question.workload.context_ranks
        found = enumerate_layouts(question.shape, pool.node_devices, pool.devices, ranks)
        candidates, refused = weigh_all(question, pool.hardware, found, constants)
        every[index], rejected[index] = tuple(candidates), tuple(refused)
        rest = None if wanted is None else max(0.0, wanted - total)
        rate, chosen = fill_pool(candidates, pool, rest)
        bound += density_bound(candidates, pool)
        total += rate
        blocks += [Block(index, candidate, count) for candidate, count in chosen.items()]
        used += sum(candidate.devices * count for candidate, count in chosen.items())
    return Fleet(tuple(blocks), total, bound, used, tuple(every), tuple(rejected))


def _cheapest_first(pools: Sequence[Pool]) -> list[int]:
    return sorted(range(len(pools)), key=lambda i: (pools[i].hardware.price_per_hour, i))


def density_bound(candidates: Sequence[Candidate], pool: Pool) -> float:
    """No fill yields more than every device at the best density; a pair needs both its halves."""
    by_role = {role: 0.0 for role in ("serve", "prefill", "decode")}
    for candidate in candidates:
        by_role[candidate.role] = max(by_role[candidate.role], candidate.density)
    first, second = by_role["prefill"], by_role["decode"]
    pair = first * second / (first + second) if first and second else 0.0
    return pool.devices * max(by_role["serve"], pair)


def fill_pool(
    candidates: Sequence[Candidate], pool: Pool, wanted: float | None = None
) -> tuple[float, dict[Candidate, int]]:
    """(requests a second, replicas of each candidate) of the best fill of a pool.

    With `wanted`, the fewest nodes that reach it, or all of them when none do.
    """
    serve, prefill, decode = (
        _curve([c for c in candidates if c.role == role], pool)
        for role in ("serve", "prefill", "decode")
    )
    nodes = pool.nodes
    pair, first_nodes = _pair(prefill, decode, nodes)
    # Every split of n nodes between mixed replicas and a pair, for every n up to all.
    whole = np.array([np.max(serve.best[: n + 1] + pair[n::-1]) for n in range(nodes + 1)])
    enough = nodes
    if wanted is not None:
        reached = np.flatnonzero(whole >= wanted)
        enough = int(reached[0]) if len(reached) else nodes
    mixed = int(np.argmax(serve.best[: enough + 1] + pair[enough::-1]))
    chosen = _taken(serve, mixed)
    rest = enough - mixed
    if pair[rest] > 0:
        head = int(first_nodes[rest])
        for part in (_taken(prefill, head), _taken(decode, rest - head)):
            for candidate, count in part.items():
                chosen[candidate] = chosen.get(candidate, 0) + count
    return float(whole[enough]), chosen


def _pair(prefill: _Curve, decode: _Curve, nodes: int) -> tuple[Array, Array]:
    """(rate, prefill nodes) of the best prefill/decode split of n nodes, for every n."""
    rate, head = np.zeros(nodes + 1), np.zeros(nodes + 1)
    for n in range(1, nodes + 1):
        both = np.minimum(prefill.best[: n + 1], decode.best[n::-1])
        head[n] = np.argmax(both)
        rate[n] = both[int(head[n])]
    return rate, head


def _curve(candidates: Sequence[Candidate], pool: Pool) -> _Curve:
    """Best yields of 0..nodes nodes."""
    by_size: dict[int, Candidate] = {}
    for candidate in candidates:
        known = by_size.get(candidate.devices)
        if known is None or candidate.rate > known.rate:
            by_size[candidate.devices] = candidate
    inside, fill = _fill_node({n: c for n, c in by_size.items() if n <= pool.node_devices}, pool)
    moves = [(1, inside, fill)] if inside > 0 else []
    moves += [
        (size // pool.node_devices, candidate.rate, (candidate,))
        for size, candidate in by_size.items()
        if size > pool.node_devices
    ]
    best = np.zeros(pool.nodes + 1)
    take: list[tuple[int, tuple[Candidate, ...]]] = [(0, ())] * (pool.nodes + 1)
    for n in range(1, pool.nodes + 1):
        best[n], take[n] = best[n - 1], (1, ())
        for nodes, rate, replicas in moves:
            if nodes <= n and best[n - nodes] + rate > best[n]:
                best[n], take[n] = best[n - nodes] + rate, (nodes, replicas)
    return _Curve(best, take)


def _fill_node(by_size: dict[int, Candidate], pool: Pool) -> tuple[float, tuple[Candidate, ...]]:
    """The best replicas inside one node."""
    best: list[tuple[float, tuple[Candidate, ...]]] = [(0.0, ())]
    for devices in range(1, pool.node_devices + 1):
        found = best[devices - 1]
        for size, candidate in by_size.items():
            if size <= devices and best[devices - size][0] + candidate.rate > found[0]:
                before = best[devices - size]
                found = (before[0] + candidate.rate, (*before[1], candidate))
        best.append(found)
    return best[-1]


def _taken(curve: _Curve, nodes: int) -> dict[Candidate, int]:
    """Replicas of the best fill of so many nodes."""
    counts: dict[Candidate, int] = {}
    while nodes > 0:
        used, replicas = curve.take[nodes]
        for candidate in replicas:
            counts[candidate] = counts.get(candidate, 0) + 1
        nodes -= max(1, used)
    return counts


@dataclass(frozen=True, slots=True)
class Offer:
    """A mixed replica on one pool's devices: tokens a second of one user and of one device, and the
    price of a million output tokens (in the unit of `pricePerHour`, 1 where a sheet has none)."""

    pool: int
    candidate: Candidate
    user: float
    device: float
    price: float


def offers(
    pools: Sequence[Pool], candidates: Sequence[Sequence[Candidate]], output_tokens: int
) -> list[Offer]:
    """The Pareto front over all pools: no other offer is as good in all three and better in one.

    The fastest for a user stands first.
    """
    found: list[Offer] = []
    for index, (pool, members) in enumerate(zip(pools, candidates, strict=True)):
        for candidate in pareto(members, output_tokens):
            device = candidate.density * output_tokens
            price = pool.hardware.price_per_hour / 3600 / device * 1e6
            found.append(Offer(index, candidate, 1 / candidate.tpot_s, device, price))
    kept = [offer for offer in found if not any(_beats(other, offer) for other in found)]
    return sorted(kept, key=lambda offer: (-offer.user, offer.price))


def _beats(first: Offer, second: Offer) -> bool:
    better = (first.user, first.device, -first.price), (second.user, second.device, -second.price)
    return better[0] != better[1] and all(a >= b for a, b in zip(*better, strict=True))


def pareto(candidates: Sequence[Candidate], output_tokens: int) -> list[Candidate]:
    """Mixed replicas that no other beats in both tokens/s of a user and of a device."""
    serve = [c for c in candidates if c.role == "serve"]
    serve.sort(key=lambda c: (c.tpot_s, -c.density))
    front: list[Candidate] = []
    best = 0.0
    for candidate in serve:
        if candidate.density * output_tokens > best * (1 + 1e-12):
            front.append(candidate)
            best = candidate.density * output_tokens
    return front
