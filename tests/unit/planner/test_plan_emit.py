"""Exports: flags that an engine's own checks accept, manifests of the right kind."""

from dataclasses import replace
from typing import Any

import pytest

from moectl.cli import catalogue
from moectl.cli.draw_file import write_drawing
from moectl.core.errors import RefusedError, UsageError
from moectl.core.facts import SUPPORTED_ARCHITECTURES
from moectl.placement.draw import CELL_W, picture, svg
from moectl.placement.emit.commands import Replica, command
from moectl.placement.emit.kubernetes import manifest, service
from moectl.placement.emit.rules import engines_for, why_not
from moectl.placement.executable import ARCHITECTURES, RULES, why_not_executable
from moectl.placement.layouts import Layout, layouts
from moectl.placement.quantities import PRECISIONS

_, SHAPE = catalogue.find_shape("qwen3-30b-a3b")
REPLICA = Replica(
    "Qwen/Qwen3-30B-A3B", SHAPE, Layout(dp=8, ep=8), PRECISIONS["bf16"], 64, 8192, 8192
)


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_our_engine_is_offered_exactly_the_families_that_it_serves() -> None:
    assert set(SUPPORTED_ARCHITECTURES) == ARCHITECTURES


def test_every_rule_of_our_engine_refuses_some_layout_with_its_reason() -> None:
    breaking = {
        "family": Layout(),
        "one tensor rank": Layout(tp=2, ep=2),
        "one stage": Layout(pp=2),
        "whole prompts": Layout(cp=2, ep=2),
        "experts over all ranks": Layout(dp=8, ep=4),
    }
    assert set(breaking) == {rule.name for rule in RULES}
    for name, layout in breaking.items():
        shape = replace(SHAPE, architecture="Other") if name == "family" else SHAPE
        assert why_not_executable(shape, layout)
    assert why_not_executable(SHAPE, Layout(dp=7, ep=7)) == ""  # no divisor of 128


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
    assert "no tensor parallelism (tp 8)" in why_not("moectl", SHAPE, Layout(tp=8, ep=8))


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


def test_the_worker_of_a_vllm_group_joins_and_does_not_serve() -> None:
    wide = replace(REPLICA, layout=Layout(dp=16, ep=16))
    template = manifest("vllm", wide, 2, 8)["spec"]["leaderWorkerTemplate"]
    leader, worker = (template[part]["spec"] for part in ("leaderTemplate", "workerTemplate"))
    assert "exec vllm serve" in leader["containers"][0]["command"][2]
    assert "--data-parallel-size-local 8" in leader["containers"][0]["command"][2]
    assert "vllm serve" not in worker["containers"][0]["command"][2]
    chosen = service(wide)["spec"]["selector"].items()
    assert chosen <= template["leaderTemplate"]["metadata"]["labels"].items()
    assert not chosen <= template["workerTemplate"]["metadata"]["labels"].items()


def test_a_drawing_ends_in_svg_or_png(tmp_path) -> None:
    words = (SHAPE, Layout(dp=16, ep=16), "a title $x$")
    for ending, head in ((".svg", b"<svg"), (".png", b"\x89PNG")):
        write_drawing(tmp_path / f"l{ending}", picture(*words), svg(*words))
        assert (tmp_path / f"l{ending}").read_bytes().startswith(head)
    with pytest.raises(UsageError, match="not a picture"):
        write_drawing(tmp_path / "l.pdf", picture(*words), svg(*words))


def test_a_drawing_keeps_to_its_boxes() -> None:
    for layout in (
        Layout(tp=8),
        Layout(dp=16, ep=16),
        Layout(tp=2, dp=8),
        Layout(pp=4, dp=2, ep=2),
    ):
        drawn = picture(SHAPE, layout, "a model: a layout on a device of some name")
        for mark in drawn.marks:
            wide = 6.2 * mark.size / 11 * len(mark.text) if mark.text else mark.width
            assert mark.x >= 0 and mark.x + wide <= drawn.width
            assert 0 <= mark.y <= drawn.height
            if mark.text.startswith(("heads", "experts 0")):
                assert wide <= CELL_W - 18
