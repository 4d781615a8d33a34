"""Activations of our own engine: the formula beside what torch says was alive at once."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from moectl.agents.engine.engine import Limits
from moectl.agents.engine.local import open_engine, open_forward
from moectl.agents.engine.request import Request
from moectl.cli import catalogue
from moectl.cli.train.random_model import RandomModel, write_random_model
from moectl.placement.layouts import Layout
from moectl.placement.memory_check import Measured, compare
from moectl.placement.memory_terms import Demand, memory_terms
from moectl.placement.own_memory import OwnLimits, own_activation_bytes, own_terms
from moectl.placement.quantities import PRECISIONS

WIDE = PRECISIONS["float32"]
SHAPES = {
    "attention": {"heads": 16, "kv_heads": 2, "head_dim": 64, "hidden": 128, "expert_hidden": 16},
    "as many keys as queries": {"heads": 8, "kv_heads": 8, "head_dim": 64, "hidden": 128},
    "a wide residual": {"heads": 8, "kv_heads": 2, "head_dim": 64, "hidden": 512},
    "many experts a token": {"heads": 4, "head_dim": 32, "hidden": 128, "expert_hidden": 512},
}
TOP_K = {"many experts a token": 4}


def allocations(nodes):
    """(time, bytes) of every allocation, and of every release as a negative number."""
    for node in nodes:
        if type(node.extra_fields).__name__ == "_ExtraFields_Allocation":
            yield node.start_time_ns, node.extra_fields.alloc_size
        yield from allocations(node.children)


def peak_bytes(folder, chunk: int) -> int:
    """The most that one prefill of `chunk` tokens has alive at once."""
    forward, moe = open_forward(folder)
    limits = Limits(max_batch_tokens=chunk, prefill_chunk=chunk)
    engine = open_engine(forward, limits, 64)
    engine.submit(Request("a", tuple(range(3, 3 + chunk)), 1))
    plan = engine.plan()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        engine.run(plan, moe)
    now = peak = 0
    tree = seen.profiler.kineto_results.experimental_event_tree()
    for _, size in sorted(allocations(tree)):
        now += size
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", SHAPES)
def test_activations_of_a_step_are_what_torch_allocates(tmp_path, name: str) -> None:
    torch.set_num_threads(1)
    experts, k = (16, TOP_K[name]) if name in TOP_K else (4, 1)
    write_random_model(
        tmp_path,
        RandomModel(layers=2, experts=experts, experts_per_token=k, **SHAPES[name]),
        shard_bytes=2**30,
        report=lambda done, total: None,
    )
    chunk = 256
    _, shape = catalogue.find_shape(str(tmp_path))
    limits = OwnLimits(batch_tokens=chunk, requests=1)
    predicted = own_activation_bytes(shape, Layout(), WIDE, limits)
    assert predicted == pytest.approx(peak_bytes(tmp_path, chunk), rel=0.05)


def test_the_demo_model_agrees_too() -> None:
    folder = catalogue.clusters_folder() / "models/demo"
    _, shape = catalogue.find_shape(str(folder))
    limits = OwnLimits(batch_tokens=128, requests=1)
    predicted = own_activation_bytes(shape, Layout(), WIDE, limits)
    assert predicted == pytest.approx(peak_bytes(folder, 128), rel=0.05)


def test_only_what_our_engine_does_differently_differs() -> None:
    _, shape = catalogue.find_shape("qwen3-30b-a3b")
    demand, layout = Demand(2.0, 4096, 4096), Layout(dp=4, ep=4)
    plain = memory_terms(shape, layout, WIDE, demand)
    own = own_terms(shape, layout, WIDE, demand, OwnLimits())
    for term in ("attention", "experts", "routers_and_norms", "embeddings", "cache"):
        assert getattr(own, term) == getattr(plain, term)
    assert own.runtime < plain.runtime


def test_a_width_that_does_not_divide_counts_its_fullest_rank() -> None:
    _, shape = catalogue.find_shape("qwen3-30b-a3b")  # 48 x 128 experts
    own = own_terms(shape, Layout(dp=7, ep=7), WIDE, Demand(0, 1, 1), OwnLimits())
    assert own.experts == 878 * 3 * 2048 * 768 * 4


def test_what_cannot_be_seen_is_unknown_and_not_zero() -> None:
    _, shape = catalogue.find_shape("qwen3-30b-a3b")
    terms = own_terms(shape, Layout(dp=2, ep=2), WIDE, Demand(0, 1, 1), OwnLimits())
    lines = compare(shape, WIDE, terms, [Measured("n1/d0", 100, 200, 300, 16)])
    unknown = [line.term for line in lines if line.measured is None]
    assert unknown == ["exchange region", "activations and runtime"]
    assert lines[-1].measured == 600 and all(line.error is None for line in lines[3:5])
