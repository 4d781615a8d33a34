"""The simulator reproduces what was measured on the real traces before it was written.

Protocol "one": a step's experts are asked for one after the other, best gate first; anything but
the one being admitted may be evicted. Every use counts, the first too.
"""

import pytest

from moectl.memory.cache.belady import static_best_hit_rate
from moectl.memory.cache.catalogue import make_policy
from moectl.memory.cache.simulate import ReplayRules, replay
from moectl.memory.cache.trace import RoutingTrace

NEAR = 0.001

# slots -> LRU, MIN in one shared pool; facts give three digits
SHARED = {
    64: (0.341, 0.615),
    96: (0.418, 0.735),
    128: (0.569, 0.818),
    192: (0.802, 0.933),
}
# slots a layer -> LRU, LFU, static with hindsight, MIN
PER_LAYER = {
    2: (0.341, 0.288, 0.340, 0.476),
    3: (0.480, 0.448, 0.480, 0.649),
    4: (0.602, 0.585, 0.607, 0.762),
    6: (0.809, 0.815, 0.830, 0.908),
}
# slots a layer -> least and largest LRU and MIN over the layers, two digits or three
QWEN = {
    8: ((0.155, 0.192), (0.41, 0.44)),
    15: ((0.28, 0.32), (0.58, 0.61)),
    30: ((0.53, 0.58), (0.80, 0.83)),
}


def _hit_rate(trace: RoutingTrace, name: str, slots: int, pool: str = "shared") -> float:
    return replay(trace, make_policy(name, trace, slots), ReplayRules(slots, pool)).hit_rate


@pytest.mark.parametrize("slots", SHARED)
def test_a_shared_pool_gives_the_measured_hit_rates(mixtral: RoutingTrace, slots: int) -> None:
    lru, least = SHARED[slots]
    assert _hit_rate(mixtral, "lru", slots) == pytest.approx(lru, abs=NEAR)
    assert _hit_rate(mixtral, "min", slots) == pytest.approx(least, abs=NEAR)


@pytest.mark.parametrize("a_layer", PER_LAYER)
def test_pools_of_layers_give_the_measured_hit_rates(mixtral: RoutingTrace, a_layer: int) -> None:
    lru, lfu, static, least = PER_LAYER[a_layer]
    slots = a_layer * 32
    assert _hit_rate(mixtral, "lru", slots, "per-layer") == pytest.approx(lru, abs=NEAR)
    assert _hit_rate(mixtral, "lfu", slots, "per-layer") == pytest.approx(lfu, abs=NEAR)
    assert _hit_rate(mixtral, "min", slots, "per-layer") == pytest.approx(least, abs=NEAR)
    assert static_best_hit_rate(mixtral, slots, "per-layer") == pytest.approx(static, abs=NEAR)


@pytest.mark.parametrize("a_layer", QWEN)
def test_interleaved_requests_give_the_measured_ranges(qwen: RoutingTrace, a_layer: int) -> None:
    (lru_low, lru_high), (min_low, min_high) = QWEN[a_layer]
    for at in range(3):
        layer = qwen.of_layers([at])
        assert lru_low - 0.006 <= _hit_rate(layer, "lru", a_layer) <= lru_high + 0.006
        assert min_low - 0.006 <= _hit_rate(layer, "min", a_layer) <= min_high + 0.006


def test_the_layer_cycle_policy_is_near_what_was_measured(mixtral: RoutingTrace) -> None:
    # The measurement left the rate open (0.03 to 0.2): equal to it within a hundredth.
    for slots, measured in {64: 0.354, 96: 0.499, 128: 0.623, 192: 0.836}.items():
        assert _hit_rate(mixtral, "layer-cycle", slots) == pytest.approx(measured, abs=0.01)


def test_the_default_policy_reaches_its_goals_on_every_size(mixtral: RoutingTrace) -> None:
    for slots, wanted in {96: 0.42, 128: 0.37, 192: 0.35}.items():
        low, high = (_hit_rate(mixtral, name, slots) for name in ("lru", "min"))
        own = _hit_rate(mixtral, "trajectory", slots)
        assert (own - low) / (high - low) >= wanted
        if slots == 128:
            assert own / high >= 0.80


@pytest.mark.parametrize("eighths", [2, 4, 6])
def test_the_default_policy_is_never_below_lru(
    mixtral: RoutingTrace, qwen: RoutingTrace, eighths: int
) -> None:
    singles = [qwen.of_layers([at]) for at in range(3)]
    for trace in (mixtral, qwen, *singles):
        slots = trace.objects * eighths // 8
        assert _hit_rate(trace, "trajectory", slots) >= _hit_rate(trace, "lru", slots)


def test_the_real_files_import_with_their_counts(mixtral: RoutingTrace, qwen: RoutingTrace) -> None:
    assert (mixtral.tokens, mixtral.counts.incomplete) == (333, 123)
    assert mixtral.experts.shape == (333, 32, 2)
    assert (qwen.tokens, qwen.counts.warmup) == (12805 - 8448, 3 * 8448)
    assert qwen.layers == (0, 12, 23)
