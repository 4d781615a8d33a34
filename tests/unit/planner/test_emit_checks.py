"""Command lines by the engines' own checks, manifests by the published Kubernetes schemas."""

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest

from moectl.cli import catalogue
from moectl.core.errors import RefusedError
from moectl.placement.emit.checks import CHECKS, check_words
from moectl.placement.emit.commands import Replica, command
from moectl.placement.emit.kubernetes import manifest, service
from moectl.placement.emit.rules import why_not
from moectl.placement.layouts import layouts
from moectl.placement.quantities import PRECISIONS

_, MOE = catalogue.find_shape("qwen3-30b-a3b")  # 32 heads, 4 kv heads, 128 experts of 768
_, DENSE = catalogue.find_shape("qwen3-32b")
BF16, BLOCKS = PRECISIONS["bf16"], PRECISIONS["fp8_block"]
OLDEST = "1.28"  # the oldest release that managed clusters still run


@pytest.mark.parametrize(
    ("engine", "words", "rule", "text"),
    [
        ("vllm", "--tensor-parallel-size 6", "heads", "32 attention heads do not divide over"),
        ("vllm", "--pipeline-parallel-size 49", "stages", "48 layers do not fill 49 stages"),
        ("vllm", "--max-model-len 300000", "context", "beyond the model's 262144"),
        ("vllm", "--max-num-batched-tokens 8 --max-num-seqs 9", "batch", "8 is below"),
        ("sglang", "--tp-size 6", "heads", "do not divide over 6 attention ranks"),
        ("sglang", "--tp-size 8 --dp-size 3 --enable-dp-attention", "heads", "no multiple"),
        ("sglang", "--tp-size 8 --ep-size 3", "experts", "no multiple of --ep-size 3"),
        ("sglang", "--pp-size 2 --dp-size 2", "stages", "does not combine"),
        ("sglang", "--context-length 300000", "context", "beyond the model's 262144"),
    ],
)
def test_what_an_engine_refuses_at_start_is_refused_here(
    engine: str, words: str, rule: str, text: str
) -> None:
    with pytest.raises(RefusedError, match=rf"{engine} would refuse.*\({rule}\).*{text}") as found:
        check_words(engine, words.split(), MOE, BF16)
    assert found.value.exit_code == 3 and found.value.next_step


def test_experts_are_spread_only_where_there_are_some() -> None:
    with pytest.raises(RefusedError, match="needs a model with experts"):
        check_words("vllm", ["--enable-expert-parallel"], DENSE, BF16)


def test_a_slice_of_block_scaled_weights_is_whole_blocks() -> None:
    for engine, flag in (("vllm", "--tensor-parallel-size"), ("sglang", "--tp-size")):
        check_words(engine, [flag, "2"], MOE, BLOCKS)  # 768 / 2 = 3 blocks
        with pytest.raises(RefusedError, match="no whole block of 128"):
            check_words(engine, [flag, "4"], MOE, BLOCKS)


def test_every_rule_refuses_something_here() -> None:
    rules = {(engine, check.name) for engine, checks in CHECKS.items() for check in checks}
    assert len(rules) == 11


def replicas() -> Iterator[tuple[str, Replica]]:
    """Every layout of 16 devices that an engine is offered, in every role."""
    for engine in ("vllm", "sglang"):
        for layout in layouts(MOE, 16):
            if not why_not(engine, MOE, layout):
                for role in ("serve", "prefill", "decode"):
                    yield (
                        engine,
                        Replica("Qwen/Qwen3-30B-A3B", MOE, layout, BF16, 16, 8192, 8192, role),
                    )


def checked(document: dict[str, Any]) -> None:
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(document, version, strict=True)


def test_every_offered_layout_passes_the_checks_of_its_engine() -> None:
    found = list(replicas())
    assert len(found) > 40
    for engine, replica in found:
        assert command(engine, replica)


def test_deployments_and_services_pass_the_published_schemas() -> None:
    for engine, replica in list(replicas())[::9]:
        checked(manifest(engine, replica, 2, 16))
        checked(service(replica))


def test_a_schema_refuses_what_is_no_field() -> None:
    _, replica = next(replicas())
    wrong = manifest("vllm", replica, 2, 16)
    wrong["spec"]["template"]["spec"]["containers"][0]["comand"] = ["x"]
    with pytest.raises(kubernetes_validate.ValidationError):
        checked(wrong)


def test_a_leader_worker_set_is_whole_and_its_pods_pass_the_schemas() -> None:
    """No package carries the set's own schema: its fields are those of the v1 API, its pods are
    checked as pods."""
    fields = {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    for engine, replica in list(replicas())[::9]:
        found = manifest(engine, replica, 3, 8)
        assert found["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
        assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(found["spec"]) == {"replicas", "leaderWorkerTemplate"}
        template = found["spec"]["leaderWorkerTemplate"]
        assert set(template) == fields and template["size"] == 2
        for part in ("leaderTemplate", "workerTemplate"):
            metadata = {**template[part]["metadata"], "name": "pod"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            checked({**pod, "spec": template[part]["spec"]})
