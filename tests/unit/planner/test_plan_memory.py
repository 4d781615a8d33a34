"""The memory model: published figures, terms that add up, limits that hold."""

from moectl.cli import catalogue
from moectl.placement.layouts import Layout
from moectl.placement.memory_terms import (
    Demand,
    memory_terms,
    mlp_activation_bytes,
    sequences_that_fit,
)
from moectl.placement.quantities import PRECISIONS, with_kv

BF16, FP8 = PRECISIONS["bf16"], PRECISIONS["fp8"]


def test_a_million_tokens_of_the_7b_mlp_take_70_57_gib_and_chunks_save_96_72_percent() -> None:
    whole = mlp_activation_bytes(1_000_000, 18_944)
    chunked = mlp_activation_bytes(1_000_000, 18_944, 32_768)
    assert round(whole / 2**30, 2) == 70.57
    assert round(100 * (1 - chunked / whole), 2) == 96.72


def test_weights_of_a_whole_replica_are_the_parameters_once() -> None:
    _, shape = catalogue.find_shape("qwen3-30b-a3b")
    terms = memory_terms(shape, Layout(), BF16, Demand(0, 4096, 4096))
    weights = terms.attention + terms.dense_mlp + terms.shared_experts + terms.experts
    weights += terms.routers_and_norms + terms.embeddings
    assert weights == 2 * shape.total_parameters


def test_expert_width_divides_experts_and_nothing_else() -> None:
    _, shape = catalogue.find_shape("qwen3-30b-a3b")
    demand = Demand(4, 4096, 4096)
    one = memory_terms(shape, Layout(dp=1), BF16, demand)
    eight = memory_terms(shape, Layout(dp=8, ep=8), BF16, demand)
    assert eight.experts == one.experts / 8
    assert eight.attention == one.attention and eight.cache == one.cache


def test_a_latent_cache_is_whole_on_every_tensor_rank() -> None:
    _, shape = catalogue.find_shape("deepseek-v3")
    demand = Demand(4, 4096, 4096)
    caches = {memory_terms(shape, Layout(tp=tp), FP8, demand).cache for tp in (1, 2, 8)}
    assert len(caches) == 1


def test_key_heads_are_copied_beyond_their_number() -> None:
    _, shape = catalogue.find_shape("qwen3-30b-a3b")
    demand = Demand(4, 4096, 4096)
    four, eight = (memory_terms(shape, Layout(tp=tp), BF16, demand).cache for tp in (4, 8))
    assert four == eight


def test_what_fits_fits_and_one_more_does_not() -> None:
    _, shape = catalogue.find_shape("gpt-oss-120b")
    demand, layout, hbm = Demand(0, 9216, 8192), Layout(tp=2), 80e9
    room = int(sequences_that_fit(shape, layout, PRECISIONS["mxfp4-experts"], demand, hbm))
    assert room > 0
    for count, fits in ((room, True), (room + 1, False)):
        now = Demand(count, 9216, 8192)
        total = memory_terms(shape, layout, PRECISIONS["mxfp4-experts"], now).total
        assert (total <= 0.95 * hbm) is fits


def test_a_narrower_cache_halves_the_cache_alone() -> None:
    _, shape = catalogue.find_shape("qwen3-235b-a22b")
    demand, layout = Demand(8, 8192, 8192), Layout(tp=4)
    wide = memory_terms(shape, layout, FP8, demand)
    narrow = memory_terms(shape, layout, with_kv(FP8, 1.0), demand)
    assert wide.total - narrow.total == wide.cache / 2


def test_nothing_is_lumped() -> None:
    _, shape = catalogue.find_shape("deepseek-v3")
    terms = memory_terms(shape, Layout(dp=8, ep=8), FP8, Demand(16, 8192, 8192))
    assert terms.runtime < 0.04 * terms.total
    assert terms.largest() == "experts"
