"""Which Kubernetes objects run a plan? Deployments inside a node, LeaderWorkerSets across nodes.

Plain objects ready for YAML. Names are DNS labels; every container asks for its devices, so that a
scheduler places it as the plan assumed. The images are arguments: a plan does not choose versions.
"""

import re
from typing import Any

from .commands import Replica, command

PORT = 8000
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
    leader = [*words, "--port", str(PORT), "--host", "0.0.0.0"]  # noqa: S104 - behind a Service
    joins = _joins(engine, nodes)
    pods = [
        _pod(_container(engine, [*start, *joins], devices, kind), dict(labels))
        for start in (leader, words)
    ]
    for index, pod in enumerate(pods):
        if engine == "sglang":
            rank = "0" if index == 0 else "$(LWS_WORKER_INDEX)"
            pod["spec"]["containers"][0]["command"] += ["--node-rank", rank]
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "leaderWorkerTemplate": {
                "size": nodes,
                "leaderTemplate": pods[0],
                "workerTemplate": pods[1],
            },
        },
    }


def _joins(engine: str, nodes: int) -> list[str]:
    """How the pods of a group find each other; the variables are set by the LeaderWorkerSet."""
    if engine == "sglang":
        return ["--nnodes", str(nodes), "--dist-init-addr", "$(LWS_LEADER_ADDRESS):20000"]
    return ["--distributed-executor-backend", "ray"]
