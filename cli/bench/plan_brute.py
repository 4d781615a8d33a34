"""Is the search right? The same question answered by trying everything, on random instances.

Nothing of the search is used: layouts come from nested loops and stated rules, fills from listing
every partition of nodes and devices. Only the time and memory models are shared, because they are
what both optimise.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...placement.candidates import BATCHES, Candidate, Question, Workload, weigh_all
from ...placement.constants import Constants
from ...placement.hardware import Hardware
from ...placement.layouts import Layout
from ...placement.model_facts import Attention, FeedForward, LayerGroup, ModelShape
from ...placement.quantities import PRECISIONS
from ...placement.search import Pool

REPLICA_MAX = 64


def random_instance(
    rng: random.Random, devices: Sequence[Hardware]
) -> tuple[Question, tuple[Pool, ...]]:
    """A random model, workload and fleet of at most 64 devices."""
    hidden = 1024 * rng.choice((1, 2, 4, 7))
    heads, kv = rng.choice(((16, 2), (32, 8), (40, 8), (64, 4), (28, 4)))
    attention = Attention("gqa", 2 * hidden * 128 * (heads + kv), heads, kv, 128, 128, 256 * kv)
    experts = rng.choice((0, 8, 64, 96, 128))
    inner = 256 * rng.choice((2, 3, 6, 8))
    if experts:
        mlp = FeedForward(0, 0, experts, rng.choice((1, 2, 8)), 3 * hidden * inner, inner)
    else:
        mlp = FeedForward(12 * hidden * hidden, 4 * hidden)
    group = LayerGroup(rng.choice((12, 24, 30, 48)), attention, mlp, 2 * hidden)
    shape = ModelShape("Random", hidden, 128_000, 131_072, False, (group,), hidden)
    limits = (None, 0.2, 0.5, 2.0), (None, 0.01, 0.02, 0.05)
    work = Workload(
        rng.choice((512, 2048, 8192, 8192, 40_000, 300_000)),
        rng.choice((64, 512, 2048)),
        rng.choice(limits[0]),
        rng.choice(limits[1]),
        rng.choice((None, None, 5.0, 50.0)),
        gap_s=rng.choice((None, None, 0.3)),
    )
    precision = PRECISIONS[rng.choice(("bf16", "fp8"))]
    question = Question(shape, precision, rng.choice(("any", "vllm", "sglang")), work)
    node = rng.choice((1, 2, 4, 6, 8))
    pools = []
    left = 64
    for _ in range(rng.choice((1, 1, 2))):
        nodes = rng.randint(1, max(1, min(8, left // node)))
        pools.append(Pool(rng.choice(devices), nodes, node))
        left -= nodes * node
        if left < node:
            break
    return question, tuple(pools)


def every_layout(shape: ModelShape, pool: Pool, prompt: int) -> Iterator[Layout]:
    """All legal layouts that stand on a pool, by nested loops; a context rank takes 8192 tokens of
    a prompt or more."""
    node, group = pool.node_devices, shape.groups[0]
    for size in range(1, min(pool.devices, REPLICA_MAX) + 1):
        if size <= node and node % size:
            continue
        if size > node and size not in (node * 2**k for k in range(1, 8)):
            continue
        for pp in range(1, size + 1):
            for tp in range(1, min(size, node) + 1):
                if size % (pp * tp) or shape.heads % tp or pp > shape.layers:
                    continue
                stage = size // pp
                for cp in range(1, stage // tp + 1):
                    if stage // tp % cp or (cp > 1 and prompt < 8192 * cp):
                        continue
                    for ep in range(1, stage + 1):
                        layout = Layout(tp, pp, stage // tp // cp, ep, cp)
                        if not _forbidden(group, layout):
                            yield layout


def _forbidden(group: LayerGroup, layout: Layout) -> bool:
    stage, mlp = layout.tp * layout.dp * layout.cp, group.feed_forward
    if stage % layout.ep or (layout.ep > 1 and not mlp.experts) or mlp.experts % layout.ep:
        return True
    if mlp.experts and mlp.expert_inner % (stage // layout.ep):
        return True
    return bool(mlp.dense_inner % layout.tp)


def every_candidate(question: Question, pool: Pool, constants: Constants) -> list[Candidate]:
    """All layouts with all batches, one chunk at a time: the search must find the same best."""
    found = list(every_layout(question.shape, pool, question.workload.input_tokens))
    candidates: list[Candidate] = []
    for chunk in (2048, 8192, 32_768, 131_072):
        # Wider than a prompt that a smaller one holds already, and not the usual one.
        if chunk > 8192 and chunk // 4 >= question.workload.input_tokens:
            continue
        one = replace(question, workload=replace(question.workload, chunk=chunk))
        candidates += weigh_all(one, pool.hardware, found, constants)[0]
    assert all(candidate.batch in BATCHES for candidate in candidates)
    return candidates


def best_rate(question: Question, pools: Sequence[Pool], constants: Constants) -> float:
    """Requests a second of the best fleet; with a rate asked, of the fewest nodes reaching it."""
    total = 0.0
    wanted = question.workload.rate
    order = sorted(range(len(pools)), key=lambda i: (pools[i].hardware.price_per_hour, i))
    for index in order:
        pool = pools[index]
        candidates = every_candidate(question, pool, constants)
        yields = [_best_of_nodes(candidates, pool, nodes) for nodes in range(pool.nodes + 1)]
        if wanted is None:
            total += yields[-1]
            continue
        rest = max(0.0, wanted - total)
        total += next((rate for rate in yields if rate >= rest), yields[-1])
    return total


def _best_of_nodes(candidates: Sequence[Candidate], pool: Pool, nodes: int) -> float:
    """Every split of nodes between mixed, prefill and decode replicas, every fill of each."""
    tables = {
        role: _rates([c for c in candidates if c.role == role])
        for role in ("serve", "prefill", "decode")
    }
    fills = {
        role: [_fill(table, pool, n) for n in range(nodes + 1)] for role, table in tables.items()
    }
    best = 0.0
    for mixed in range(nodes + 1):
        for first in range(nodes - mixed + 1):
            pair = min(fills["prefill"][first], fills["decode"][nodes - mixed - first])
            best = max(best, fills["serve"][mixed] + pair)
    return best


def _rates(candidates: Sequence[Candidate]) -> dict[int, float]:
    rates: dict[int, float] = {}
    for candidate in candidates:
        rates[candidate.devices] = max(rates.get(candidate.devices, 0.0), candidate.rate)
    return rates


def _fill(rates: dict[int, float], pool: Pool, nodes: int) -> float:
    """The best of all ways to cut nodes into single ones and groups, and single ones into parts."""
    inside = [size for size in rates if size <= pool.node_devices]
    one = max(
        (sum(rates[part] for part in parts) for parts in _cuts(pool.node_devices, inside)),
        default=0.0,
    )
    groups = {1: one}
    groups |= {
        size // pool.node_devices: rate for size, rate in rates.items() if size > pool.node_devices
    }
    return max(
        (sum(groups[part] for part in parts) for parts in _cuts(nodes, list(groups))), default=0.0
    )


def _cuts(total: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every multiset of sizes whose sum is at most `total`."""
    if not sizes:
        yield ()
        return
    first, rest = sizes[0], sizes[1:]
    for count in range(total // first + 1):
        for others in _cuts(total - count * first, rest):
            yield (first,) * count + others
