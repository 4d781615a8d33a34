"""Which Kubernetes objects run a plan? Deployments inside a node, LeaderWorkerSets across nodes.

Plain objects ready for YAML. Names are DNS labels; every container asks for its devices, so that a
scheduler places it as the plan assumed. The images are arguments: a plan does not choose versions.
"""

import re
import shlex
from typing import Any

from .checks import number
from .commands import Replica, command

PORT = 8000
RAY_PORT = 6379
IMAGES = {"vllm": "vllm/vllm-openai:latest", "sglang": "lmsysorg/sglang:latest"}
RESOURCES = {"cuda": "nvidia.com/gpu", "ascend": "huawei.com/Ascend910"}


def label(text: str) -> str:
    """A DNS label of a name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50] or "model"


def manifest(
    engine: str, replica: Replica, replicas: int, node_devices: int, kind: str = "cuda"
) -> dict[str, Any]:
    """The object that runs `replicas` of one replica; raises RefusedError as `command` does."""
    name = f"{label(replica.model.split('/')[-1])}-{replica.role}-{label(str(replica.layout))}"[:58]
    words = command(engine, replica)
    if replica.layout.devices <= node_devices:
        return _deployment(name, engine, words, replicas, (replica.layout.devices, kind))
    nodes = -(-replica.layout.devices // node_devices)
    return _leader_workers(name, engine, words, replicas, (nodes, node_devices, kind))


def service(replica: Replica) -> dict[str, Any]:
    """One front door for all replicas of a role."""
    app = label(replica.model.split("/")[-1])
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{app}-{replica.role}"},
        "spec": {
            "selector": {"moectl.dev/model": app, "moectl.dev/role": replica.role},
            "ports": [{"name": "http", "port": PORT, "targetPort": PORT}],
        },
    }


def _labels(name: str) -> dict[str, str]:
    for role in ("serve", "prefill", "decode"):
        model, found, _ = name.partition(f"-{role}-")
        if found:
            return {"app": name, "moectl.dev/model": model, "moectl.dev/role": role}
    return {"app": name}


def _container(engine: str, words: list[str], devices: int, kind: str) -> dict[str, Any]:
    resource = RESOURCES.get(kind, RESOURCES["cuda"])
    return {
        "name": "engine",
        "image": IMAGES[engine],
        "command": words,
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {resource: str(devices)}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - in the container
    }


def _pod(container: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [container],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        },
    }


def _deployment(
    name: str, engine: str, words: list[str], replicas: int, each: tuple[int, str]
) -> dict[str, Any]:
    labels = _labels(name)
    words = [*words, "--port", str(PORT), "--host", "0.0.0.0"]  # noqa: S104 - behind a Service
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": _pod(_container(engine, words, *each), labels),
        },
    }


def _leader_workers(
    name: str, engine: str, words: list[str], replicas: int, group: tuple[int, int, str]
) -> dict[str, Any]:
    nodes, devices, kind = group
    labels = _labels(name)
    leads = [*words, "--port", str(PORT), "--host", "0.0.0.0"]  # noqa: S104 - behind a Service
    commands = {"vllm": _over_ray, "sglang": _by_rank}[engine](leads, words, nodes, devices)
    containers = [_container(engine, each, devices, kind) for each in commands]
    for key in ("ports", "readinessProbe"):
        del containers[1][key]  # only the leader answers requests
    # A Service selects by role: pods that do not answer must not be among those it chooses.
    inner = {"app": labels["app"]}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "leaderWorkerTemplate": {
                "size": nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": _pod(containers[0], dict(labels)),
                "workerTemplate": _pod(containers[1], inner),
            },
        },
    }


def _by_rank(leads: list[str], words: list[str], nodes: int, _: int) -> tuple[list[str], list[str]]:
    """SGLang: every pod starts the engine with its rank; the variables are the set's own."""
    joins = ["--nnodes", str(nodes), "--dist-init-addr", "$(LWS_LEADER_ADDRESS):20000"]
    worker = [*words, *joins, "--node-rank", "$(LWS_WORKER_INDEX)"]
    return [*leads, *joins, "--node-rank", "0"], worker


def _over_ray(
    leads: list[str], words: list[str], nodes: int, devices: int
) -> tuple[list[str], list[str]]:
    """vLLM: one pod starts the engine, which places its workers over a Ray cluster of all pods."""
    serve = [*leads, "--distributed-executor-backend", "ray"]
    if "--data-parallel-size" in words:
        serve += ["--data-parallel-backend", "ray"]
        serve += ["--data-parallel-size-local", str(_replicas_here(words, devices))]
    head = f"ray start --head --port={RAY_PORT} && exec {shlex.join(serve)}"
    # `shlex` quotes what Kubernetes itself fills in; nothing here needs that.
    join = f"exec ray start --block --address=$(LWS_LEADER_ADDRESS):{RAY_PORT}"
    return ["sh", "-c", head], ["sh", "-c", join]


def _replicas_here(words: list[str], devices: int) -> int:
    """Attention replicas that stand on the leader's own node."""
    tp, pp = (
        number(words, "--tensor-parallel-size", 1),
        number(words, "--pipeline-parallel-size", 1),
    )
    return max(1, devices // (tp * pp))
