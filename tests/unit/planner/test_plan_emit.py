"""Exports: flags that an engine's own checks accept, manifests of the right kind."""

from dataclasses import replace
from typing import Any

import pytest

from moectl.cli import catalogue
from moectl.core.errors import RefusedError
from moectl.core.facts import SUPPORTED_ARCHITECTURES
from moectl.placement.draw import svg
from moectl.placement.emit.commands import Replica, command
from moectl.placement.emit.kubernetes import manifest, service
from moectl.placement.emit.rules import OWN_ARCHITECTURES, engines_for, why_not
from moectl.placement.layouts import Layout, layouts
from moectl.placement.quantities import PRECISIONS

_, SHAPE = catalogue.find_shape("qwen3-30b-a3b")
REPLICA = Replica(
    "Qwen/Qwen3-30B-A3B", SHAPE, Layout(dp=8, ep=8), PRECISIONS["bf16"], 64, 8192, 8192
)


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_our_engine_is_offered_no_family_that_it_cannot_read() -> None:
    assert set(SUPPORTED_ARCHITECTURES) >= OWN_ARCHITECTURES


def test_sglang_counts_data_parallel_ranks_inside_its_tensor_group() -> None:
    words = command("sglang", REPLICA)
    assert (value_of(words, "--tp-size"), value_of(words, "--dp-size")) == ("8", "8")
    assert value_of(words, "--ep-size") == "8" and "--enable-dp-attention" in words


def test_vllm_spreads_experts_over_all_ranks_or_none() -> None:
    assert "--enable-expert-parallel" in command("vllm", REPLICA)
    half = replace(REPLICA, layout=Layout(dp=8, ep=4))
    with pytest.raises(RefusedError, match="all 8 ranks"):
        command("vllm", half)


def test_our_engine_refuses_tensor_and_pipeline_layouts_with_the_reason() -> None:
    assert why_not("moectl", SHAPE, Layout(dp=8, ep=8)) == ""
    assert "tp 1, pp 1" in why_not("moectl", SHAPE, Layout(tp=8, ep=8))


def test_every_layout_that_an_engine_is_offered_passes_its_rules() -> None:
    for layout in layouts(SHAPE, 8):
        for engine in engines_for(SHAPE, layout):
            words = command(engine, replace(REPLICA, layout=layout))
            assert all(isinstance(word, str) and word for word in words)


def test_a_replica_inside_a_node_is_a_deployment() -> None:
    found = manifest("sglang", REPLICA, 3, 8)
    assert (found["kind"], found["spec"]["replicas"]) == ("Deployment", 3)
    pod = found["spec"]["template"]
    labels = found["spec"]["selector"]["matchLabels"]
    assert labels.items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    chosen = service(REPLICA)["spec"]["selector"]
    assert chosen.items() <= pod["metadata"]["labels"].items()


def test_a_replica_over_nodes_is_a_leader_worker_set() -> None:
    wide = replace(REPLICA, layout=Layout(dp=16, ep=16))
    found: dict[str, Any] = manifest("sglang", wide, 2, 8)
    template = found["spec"]["leaderWorkerTemplate"]
    assert (found["kind"], template["size"]) == ("LeaderWorkerSet", 2)
    leader, worker = (
        template[part]["spec"]["containers"][0]["command"]
        for part in ("leaderTemplate", "workerTemplate")
    )
    assert value_of(leader, "--node-rank") == "0" and value_of(leader, "--nnodes") == "2"
    assert value_of(worker, "--node-rank") == "$(LWS_WORKER_INDEX)"


def test_names_are_dns_labels() -> None:
    name = manifest("vllm", REPLICA, 1, 8)["metadata"]["name"]
    assert name == name.lower() and len(name) < 64 and name.replace("-", "").isalnum()


def test_the_drawing_is_well_formed_and_shows_every_device() -> None:
    import xml.etree.ElementTree as Tree

    text = svg(SHAPE, Layout(tp=2, pp=2, dp=2, ep=4), "a < b & c")
    root = Tree.fromstring(text)
    labels = {node.text for node in root.iter() if node.text}
    assert {f"d{index}" for index in range(8)} <= labels
    assert "a < b & c" in labels
